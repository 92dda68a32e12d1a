"""A file in the user's cache that holds matrices in blocks, to be made once and then mapped."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safetensors import safe_open

from rsd_engine.models.checkpoints.weight_files import reason
from rsd_kernels.formats.formats import MatrixFormat
from rsd_kernels.formats.weight import StoredMatrix

_LOG = logging.getLogger(__name__)

_ALIGNMENT = 64  # bytes, of the first matrix in a file


@dataclass(frozen=True)
class BlockSource:
    """A matrix to be had in blocks, of known size before they are made."""

    form: MatrixFormat
    shape: tuple[int, int]
    make: Callable[[], StoredMatrix]

    @property
    def rows_shape(self) -> tuple[int, int]:
        """Rows, and bytes of each."""
        return self.shape[0], self.form.row_bytes(self.shape[1])

    @property
    def nbytes(self) -> int:
        rows, row_bytes = self.rows_shape
        return rows * row_bytes


Blocks = Callable[[str], StoredMatrix]
"""The matrix of this name, in blocks."""


def cache_folder() -> Path:
    """Where such files are: a folder of the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(root) / "rsd-engine" / "quantised"


def cached_blocks(key: str, sources: Mapping[str, BlockSource], title: str) -> Blocks:
    """The matrices in the cache's file of this key, which is written first if it is not there.

    A file that is damaged is written again. Where none can be written the matrices are made in
    memory, with a warning.

    Args:
        key: of what the matrices depend on, as a name of a file.
        sources: the matrices by name.
        title: of the model, for messages and the file's metadata.
    """
    try:
        path = cache_folder() / f"{key}.safetensors"
        found = _find(path, sources, title)
        return found or _written(path, sources, title)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        _LOG.warning(
            "%s: its quantised weights are not kept for the next start, and stay in memory: %s; "
            "XDG_CACHE_HOME chooses another folder", title, reason(error),
        )  # fmt: skip
        return in_memory(sources)


def in_memory(sources: Mapping[str, BlockSource]) -> Blocks:
    """The matrices, each made when it is first asked for."""
    return cache(lambda name: sources[name].make())


def _find(path: Path, sources: Mapping[str, BlockSource], title: str) -> Blocks | None:
    if not path.exists():
        return None
    try:
        return _mapped(path, sources)
    except Exception as error:  # of the safetensors library, which has no base class
        _LOG.warning("%s: %s is damaged, and made again: %s", title, path, reason(error))
        return None


def _mapped(path: Path, sources: Mapping[str, BlockSource]) -> Blocks:
    """Raises ValueError or an error of safetensors if the file does not hold these matrices."""
    file = safe_open(path, framework="pt", device="cpu")
    wanted = {name: ("U8", source.rows_shape) for name, source in sources.items()}
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    found = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    if found != wanted:
        raise ValueError("it holds other matrices")

    def matrix(name: str) -> StoredMatrix:
        source = sources[name]
        return StoredMatrix(source.form, file.get_tensor(name), source.shape[1])

    return matrix


def _written(path: Path, sources: Mapping[str, BlockSource], title: str) -> Blocks:
    """Writes beside `path`, then moves the whole file there; one process at a time.

    What a writer that was killed left behind is the next one's to write over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists() and (found := _find(path, sources, title)):  # written meanwhile
            return found
        try:
            file.truncate(0)
            file.write(_header(sources, title))
            for source in sources.values():
                file.write(source.make().rows.numpy().data)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return _mapped(path, sources)


def _header(sources: Mapping[str, BlockSource], title: str) -> bytes:
    """Of a safetensors file: the length of its JSON as a little-endian uint64, then the JSON."""
    entries: dict[str, object] = {"__metadata__": {"made_of": title}}
    end = 0
    for name, source in sources.items():
        start, end = end, end + source.nbytes
        shape = list(source.rows_shape)
        entries[name] = {"dtype": "U8", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
