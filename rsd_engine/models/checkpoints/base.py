"""What every checkpoint offers, however its files are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint that is known by its header and not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # as `read` returns it
    file: str  # name of the file that holds it, for messages
    nbytes: int  # in the file
    read: Callable[[], Tensor]  # on the CPU; often a view of the mapped file, never written to
    packing: str | None = None  # how it is quantised in the file, such as "GPTQ"; None: plain


class Checkpoint(ABC):
    """The config, weights and tokenizer of one model, each read when it is asked for."""

    source: str  # what the user called it, for messages
    overrides: Mapping[str, Any] = MappingProxyType({})  # of the user, for single keys of `config`

    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The config with the keys of a config.json."""

    @abstractmethod
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor under its name in transformers; only headers are read.

        Raises:
            ValueError: there are no weights, or a file is missing, damaged or not supported.
        """

    def has_bfloat16_matrices(self) -> bool:
        """True if every matrix is stored in bfloat16; a single row, as of a value head, is none."""
        matrices = [t for t in self.tensors().values() if len(t.shape) == 2 and min(t.shape) > 1]
        return all(tensor.dtype == torch.bfloat16 for tensor in matrices)

    @abstractmethod
    def tokenizer(self) -> Any:
        """The transformers tokenizer (a PreTrainedTokenizerBase)."""

    @abstractmethod
    def generation_config(self) -> dict[str, Any] | None:
        """End-of-text ids and sampling defaults, None if the checkpoint has none."""
