"""Plain weights that are quantised when they are loaded, for products on the CPU.

Of each layer all matrices are rounded, and so are embedding and LM head, to blocks as GGUF has
them: 32 inputs of one output share a scale. Norms, biases and the heads of reward models stay as
they are, and so does a matrix whose rows are no whole number of blocks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from rsd_engine.models.checkpoints.base import Checkpoint, RewrittenCheckpoint, StoredTensor
from rsd_engine.models.checkpoints.block_cache import (
    Blocks,
    BlockSource,
    cached_blocks,
    in_memory,
)
from rsd_kernels.cpu.quantise import quantise
from rsd_kernels.formats.formats import Q4_1, Q8_0, MatrixFormat
from rsd_kernels.formats.weight import StoredMatrix

_LOG = logging.getLogger(__name__)

_OF_LAYER = re.compile(r"(.+\.)?layers\.\d+\..+\.weight")
_TABLE = re.compile(r"(.+\.)?(embed_tokens|lm_head)\.weight")
_VERSION = 1  # of what the quantisers write; raised with every change


@dataclass(frozen=True)
class Quantization:
    """What matrices are rounded to."""

    name: str
    layers: MatrixFormat
    tables: MatrixFormat  # embedding and LM head, on which every token depends directly

    def format_of(self, name: str, tensor: StoredTensor) -> MatrixFormat | None:
        """Of a tensor of a checkpoint, by its header; None: it stays as it is."""
        of_layer = in_layer(name)
        if not tensor.is_matrix or not (of_layer or _TABLE.fullmatch(name)):
            return None
        form = self.layers if of_layer else self.tables
        return None if tensor.shape[1] % form.block_length else form


_KNOWN = (Quantization("int8", Q8_0, Q8_0), Quantization("int4", Q4_1, Q8_0))
QUANTIZATIONS = {quantization.name: quantization for quantization in _KNOWN}


def in_layer(name: str) -> bool:
    """Whether a tensor is a weight of a layer, by its name."""
    return _OF_LAYER.fullmatch(name) is not None


def check_plain(checkpoint: Checkpoint, quantization: str) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint that is to be rounded.

    Raises:
        ValueError: its weights are quantised already, or cannot be read.
    """
    stored = dict(checkpoint.tensors())
    for name, tensor in stored.items():
        if tensor.packing:
            raise ValueError(
                f"model {checkpoint.source!r}: quantization={quantization!r} needs plain weights, "
                f"and {name} in {tensor.file} is stored as {tensor.packing}; leave out "
                "quantization for this model"
            )
    return stored


class QuantisedAtLoad(RewrittenCheckpoint):
    """A checkpoint of plain weights, with matrices in blocks.

    The blocks are made when the first of them is read, and kept in the user's cache for the next
    start, but those of a model in memory. `read` of a tensor still gives what the checkpoint has.

    Args:
        checkpoint: of plain weights.
        quantization: what they are rounded to.

    Raises:
        ValueError: its weights are quantised already, or cannot be read.
    """

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization) -> None:
        super().__init__(checkpoint)
        self._quantization = quantization
        self._stored = check_plain(checkpoint, quantization.name)
        if not self._sources:
            raise ValueError(
                f"model {self.source!r}: quantization={quantization.name!r} rounds blocks of "
                f"{quantization.layers.block_length}, and no matrix has rows of whole blocks"
            )

    def tensors(self) -> Mapping[str, StoredTensor]:
        return self._stored | {
            name: replace(
                self._stored[name],
                nbytes=source.nbytes,
                packing=source.form.name,
                stored=partial(self._matrix, name),
            )
            for name, source in self._sources.items()
        }

    def _matrix(self, name: str) -> StoredMatrix:
        return self._blocks(name)

    @cached_property
    def _sources(self) -> dict[str, BlockSource]:
        """What is quantised, by the names of the tensors."""
        found = {}
        for name, tensor in self._stored.items():
            if form := self._quantization.format_of(name, tensor):
                rows, inputs = tensor.shape
                make = partial(self._quantised, name, form)
                found[name] = BlockSource(form, (rows, inputs), make)
        return found

    @cached_property
    def _blocks(self) -> Blocks:
        if not self.weight_files():
            return in_memory(self._sources)
        began = time.perf_counter()
        blocks = cached_blocks(self._key(), self._sources, self.source)
        _LOG.info(
            "%s: %d of %d matrices in %s, ready after %.2f s", self.source, len(self._sources),
            sum(tensor.is_matrix for tensor in self._stored.values()), self._quantization.name,
            time.perf_counter() - began,
        )  # fmt: skip
        return blocks

    def _quantised(self, name: str, form: MatrixFormat) -> StoredMatrix:
        tensor = self._stored[name]
        try:
            return quantise(tensor.read().cpu(), form)
        except ValueError as error:
            raise ValueError(
                f"model {self.source!r}: tensor {name} in {tensor.file} was not quantised: {error}"
            ) from error

    def _key(self) -> str:
        """Of everything that the blocks depend on: a file that is written again is another one."""
        files = [(path.resolve(), path.stat()) for path in self.weight_files()]
        depends_on = {
            "version": _VERSION,
            "quantization": self._quantization.name,
            "files": [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files],
            "tensors": [(n, list(t.shape), str(t.dtype)) for n, t in self._stored.items()],
        }
        return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
