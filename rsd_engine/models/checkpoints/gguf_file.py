"""The container format of GGUF (versions 2 and 3): metadata and tensors, in one file or split.

Lengths in a file are checked against its size before they are followed, for the file may be
damaged or made to do harm. See the specification in ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rsd_engine.models.checkpoints.weight_files import is_name

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_MAX_DIMENSIONS, _MAX_NESTING = 4, 4
_DEFAULT_ALIGNMENT = 32
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class BlockType(NamedTuple):
    """How the elements of a row are stored."""

    name: str
    length: int  # elements of a block
    num_bytes: int  # of a block


BlockTypes = Mapping[int, BlockType]
"""By the number that a file has for it."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as it lies in the file."""

    shape: tuple[int, ...]  # as in torch: the last dimension is contiguous
    type: int
    data: np.ndarray[Any, np.dtype[np.uint8]]  # [.., bytes of a row]; a view of the mapped file
    file: str  # name of the file


@dataclass(frozen=True)
class GgufFile:
    """What one file holds, or all parts of a split one."""

    path: Path  # of the first part, which has the metadata
    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path, types: BlockTypes) -> GgufFile:
        """Opens a file and, if it is one of several parts, the others beside it.

        Raises:
            ValueError: a file is missing, damaged or not GGUF.
        """
        paths = _parts(path)
        files = [_open_one(part, types) for part in paths]
        count = files[0].fields.get("split.count", 1)
        if count not in (0, 1, len(files)):
            raise ValueError(
                f"{paths[0]} is one of {count} parts; their names must end in -00001-of-"
                f"{count:05}.gguf and so on, in one folder"
            )
        tensors: dict[str, GgufTensor] = {}
        for file in files:
            twice = sorted(tensors.keys() & file.tensors.keys())
            if twice:
                raise ValueError(f"{file.path} holds {twice[0]}, as another part does")
            tensors |= file.tensors
        return cls(paths[0], files[0].fields, tensors)


def _parts(path: Path) -> list[Path]:
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match[1], int(match[3])
    parts = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing or path not in parts:
        shown = ", ".join(missing[:8]) or f"none of the {count} parts that its name tells of"
        raise ValueError(f"{path} is one of {count} parts; {path.parent} lacks {shown}")
    return parts


def _open_one(path: Path, types: BlockTypes) -> GgufFile:
    try:
        with path.open("rb") as file:
            # Private: nothing is ever written, but numpy and torch ask for memory that could be.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        reader = _Reader(mapping)
        fields, places = reader.header()
        alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 2**20:
            raise ValueError(f"general.alignment is {alignment!r}")
        data = np.frombuffer(mapping, np.uint8)
        start = -(-reader.at // alignment) * alignment
        tensors = {
            name: _tensor(name, place, data[start:], types, path.name)
            for name, place in places.items()
        }
    except (ValueError, OSError, struct.error) as error:
        raise ValueError(f"{path} is damaged or not a GGUF file: {error}") from error
    return GgufFile(path, fields, tensors)


@dataclass(frozen=True)
class _Place:
    dimensions: tuple[int, ...]  # the first is contiguous
    type: int
    offset: int  # bytes after the header


def _tensor(
    name: str, place: _Place, data: np.ndarray[Any, Any], types: BlockTypes, file: str
) -> GgufTensor:
    kind, width = types.get(place.type), place.dimensions[0]
    if kind is None:
        raise ValueError(
            f"tensor {name} is of type {place.type}, which is not known to the gguf package that "
            "is installed"
        )
    if width % kind.length:
        raise ValueError(
            f"tensor {name} has rows of {width} elements; {kind.name} stores blocks of "
            f"{kind.length}"
        )
    nbytes = prod(place.dimensions) // kind.length * kind.num_bytes
    if place.offset + nbytes > len(data):
        raise ValueError(
            f"tensor {name} of {kind.name} ends past the end of the file, which is cut off"
        )
    shape = tuple(reversed(place.dimensions))
    own = data[place.offset : place.offset + nbytes]
    return GgufTensor(shape, place.type, own.reshape(*shape[:-1], -1), file)


class _Reader:
    """Reads the header from its beginning."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._size = len(content)
        self.at = 0

    def header(self) -> tuple[dict[str, Any], dict[str, _Place]]:
        if self._bytes(4) != _MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}; 2 or 3, in little-endian order")
        num_tensors, num_fields = self._count(at_least=24), self._count(at_least=13)
        fields = {self._string(): self._value(self._number("I"), 0) for _ in range(num_fields)}
        return fields, dict(self._places(num_tensors))

    def _places(self, count: int) -> Iterator[tuple[str, _Place]]:
        for _ in range(count):
            name, rank = self._string(), self._number("I")
            if not is_name(name):
                raise ValueError(f"it names a tensor {ascii(name)[:100]}")
            if not 0 < rank <= _MAX_DIMENSIONS:
                raise ValueError(f"tensor {name} has {rank} dimensions; 1 to {_MAX_DIMENSIONS}")
            dimensions = struct.unpack(f"<{rank}Q", self._bytes(8 * rank))
            if min(dimensions) < 1:
                raise ValueError(f"tensor {name} has no elements")
            yield name, _Place(dimensions, self._number("I"), self._number("Q"))

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth == _MAX_NESTING:
            raise ValueError(f"a value is of type {kind}, which is not known")
        kind = self._number("I")
        if kind in _NUMBERS:
            code = _NUMBERS[kind]
            count = self._count(at_least=struct.calcsize(f"<{code}"))
            content = self._bytes(count * struct.calcsize(f"<{code}"))
            return np.frombuffer(content, np.dtype(code).newbyteorder("<")).tolist()
        count = self._count(at_least=8)
        if kind == _STRING:
            return self._strings(count)
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _strings(self, count: int) -> list[str]:
        """Without a call for each number: a vocabulary and its merges are hundreds of thousands."""
        unpack, content, end, at = _LENGTH.unpack_from, self._content, self._size, self.at
        found = []
        for _ in range(count):
            start = at + _LENGTH.size
            at = start + unpack(content, at)[0] if start <= end else end + 1
            if at > end:
                raise ValueError("it ends within a list of strings")
            found.append(content[start:at].decode())
        self.at = at
        return found

    def _count(self, at_least: int) -> int:
        """Number of elements to come, of at least so many bytes each."""
        count = int(self._number("Q"))
        if count * at_least > self._size - self.at:
            raise ValueError(f"it tells of {count} elements, more than fit in the file")
        return count

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]

    def _string(self) -> str:
        return self._bytes(self._count(at_least=1)).decode()

    def _bytes(self, count: int) -> bytes:
        if self.at + count > self._size:
            raise ValueError("it ends within its header")
        self.at += count
        return self._content[self.at - count : self.at]
