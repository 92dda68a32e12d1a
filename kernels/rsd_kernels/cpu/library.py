"""The functions and structures of the optional CPU library, csrc/cpu/rsd_cpu.h."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch  # loads the OpenMP runtime that the library calls

from rsd_kernels.cpu.build import LIBRARY
from rsd_kernels.formats.formats import PLAIN
from rsd_kernels.formats.weight import StoredMatrix, StoredWeight, Weight
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.native.build import PACKAGE
from rsd_kernels.native.library import LibraryStatus, open_library

# Equal to RSD_CPU_ABI_VERSION of csrc/cpu/rsd_cpu.h.
ABI_VERSION = 8
MAX_HEAD_DIM = 256
MAX_PARTS = 3  # of a weight

_POINTER, _I64, _F32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_Fields = list[tuple[str, type]]


def _fields(pointers: str, sizes: str, floats: str = "") -> _Fields:
    """Fields in the order of the header."""
    kinds: tuple[tuple[str, type], ...] = ((pointers, _POINTER), (sizes, _I64), (floats, _F32))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class MatrixStruct(ctypes.Structure):
    _fields_ = _fields("rows", "num_outputs type")


class WeightStruct(ctypes.Structure):
    _fields_ = [
        ("parts", MatrixStruct * MAX_PARTS),
        ("num_parts", _I64),
        ("bias", _POINTER),
    ]


class Quantise(ctypes.Structure):
    _fields_ = [("rows", _POINTER), ("matrix", MatrixStruct), *_fields("", "num_inputs type")]


class Product(ctypes.Structure):
    _fields_ = _fields(
        "y x weight residual",
        "num_rows num_outputs num_inputs y_stride x_stride residual_stride",
    )


class Embed(ctypes.Structure):
    _fields_ = [
        ("out", _POINTER),
        ("table", MatrixStruct),
        *_fields("token", "num_rows width", "scale"),
    ]


class Norm(ctypes.Structure):
    _fields_ = _fields("y x weight row_end", "num_rows width y_stride x_stride", "eps")


class SiluMul(ctypes.Structure):
    _fields_ = _fields("gated gate_up", "num_rows width")


class Pages(ctypes.Structure):
    _fields_ = _fields("k v", "page_stride token_stride head_stride num_pages tokens_per_page")


class RopeWrite(ctypes.Structure):
    _fields_ = [
        ("qkv", _POINTER),
        ("pages", Pages),
        *_fields(
            "page offset position cos sin q_norm k_norm",
            "num_rows num_positions num_q_heads num_kv_heads head_dim qkv_stride",
            "eps",
        ),
    ]


class Attention(ctypes.Structure):
    _fields_ = [
        *_fields("out q", ""),
        ("pages", Pages),
        *_fields(
            "page_table seq_slot seq_start seq_kv_len",
            "num_rows num_seqs num_slots pages_per_slot table_stride num_q_heads num_kv_heads "
            "head_dim out_stride q_stride sliding_window",
            "scale",
        ),
    ]


class Draw(ctypes.Structure):
    _fields_ = [
        *_fields("token best score", "num_ids"),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("sample", "num_steps", "position", "purpose")),
    ]


class Layer(ctypes.Structure):
    _fields_ = [
        ("input_norm", _POINTER),
        ("qkv", WeightStruct),
        *_fields("q_norm k_norm", ""),
        ("o", WeightStruct),
        ("post_norm", _POINTER),
        ("gate_up", WeightStruct),
        ("down", WeightStruct),
        *_fields("k_pages v_pages cos sin", "sliding_window"),
    ]


class DecoderStruct(ctypes.Structure):
    _fields_ = [
        ("layers", _POINTER),
        ("embedding", MatrixStruct),
        *_fields(
            "hidden normed qkv attended gate_up gated",
            "num_layers vocab_size hidden_size intermediate_size num_positions max_rows "
            "num_q_heads num_kv_heads head_dim",
        ),
        ("pages", Pages),
        *_fields("", "", "eps scale embedding_scale"),
    ]


class Pass(ctypes.Structure):
    _fields_ = _fields(
        "token position page offset seq_slot seq_start seq_kv_len page_table",
        "num_rows num_seqs num_slots pages_per_slot table_stride",
    )


class Library:
    """The functions of csrc/cpu/rsd_cpu.h; an op takes structures and a number of threads."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._error_string = handle.rsd_cpu_error_string
        self._error_string.argtypes = [ctypes.c_int32]
        self._error_string.restype = ctypes.c_char_p
        self._isa = handle.rsd_cpu_isa
        self._isa.restype = ctypes.c_char_p
        self._choose_isa = handle.rsd_cpu_choose_isa
        self._choose_isa.argtypes = [ctypes.c_char_p]
        self.product = _function(handle.rsd_cpu_product, Product)
        self.embed = _function(handle.rsd_cpu_embed, Embed)
        self.norm = _function(handle.rsd_cpu_norm, Norm)
        self.silu_mul = _function(handle.rsd_cpu_silu_mul, SiluMul)
        self.rope_write = _function(handle.rsd_cpu_rope_write, RopeWrite)
        self.attention = _function(handle.rsd_cpu_attention, Attention)
        self.quantise = _function(handle.rsd_cpu_quantise, Quantise)
        self.draw = handle.rsd_cpu_draw
        self.draw.argtypes = [ctypes.POINTER(Draw)]
        self.draw.restype = ctypes.c_int32
        self.decoder = _function(handle.rsd_cpu_decoder, DecoderStruct, Pass)
        self.guess = _loop_op(handle.rsd_cpu_guess, 1)
        self.schedule = _loop_op(handle.rsd_cpu_schedule, 3, 2)
        self.advance = _loop_op(handle.rsd_cpu_advance, 2, 2)
        self.sample = _loop_op(handle.rsd_cpu_sample, 3, 2, ctypes.c_int32)
        self.append = _loop_op(handle.rsd_cpu_append, 3, 2)
        self.bridge = _loop_op(handle.rsd_cpu_bridge, 3)
        self.retokenise = _loop_op(handle.rsd_cpu_retokenise, 3)
        self.end_step = _loop_op(handle.rsd_cpu_end_step, 2)
        self.decide = _loop_op(handle.rsd_cpu_decide, 4)
        self.fork = _loop_op(handle.rsd_cpu_fork, 4, 3)

    @property
    def isa(self) -> str:
        """The instruction set of the kernels in use."""
        return str(self._isa().decode())

    def choose_isa(self, name: str) -> None:
        """Switches to the kernels of another instruction set, for tests.

        Raises:
            ValueError: if this machine or the library lacks it.
        """
        self.check(self._choose_isa(name.encode()), f"isa {name!r}")

    def check(self, code: int, what: str) -> None:
        """Raises ValueError with the library's message for any code but success."""
        if code != 0:
            raise ValueError(f"{what}: {self._error_string(code).decode()} (code {code})")


def _function(function: Any, *structures: type[ctypes.Structure]) -> Any:
    function.argtypes = [*map(ctypes.POINTER, structures), ctypes.c_int32]
    function.restype = ctypes.c_int32
    return function


def _loop_op(function: Any, addresses: int, integers: int = 0, result: Any = None) -> Any:
    function.argtypes = [_POINTER] * addresses + [ctypes.c_int32] * integers
    function.restype = result
    return function


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def matrix_of(matrix: torch.Tensor | StoredMatrix) -> MatrixStruct:
    """A matrix as the library takes it: contiguous, on the CPU, plain of a dtype in `PLAIN`."""
    form = matrix.form if isinstance(matrix, StoredMatrix) else PLAIN[matrix.dtype]
    rows = matrix.rows if isinstance(matrix, StoredMatrix) else matrix
    return MatrixStruct(rows.data_ptr(), matrix.shape[0], form.number)


def weight_of(weight: Weight) -> WeightStruct:
    """A weight as the library takes it; it points into the tensors of `weight`."""
    assert not isinstance(weight, GroupedWeight)
    parts = weight.parts if isinstance(weight, StoredWeight) else (weight.matrix,)
    matrices = (MatrixStruct * MAX_PARTS)(*map(matrix_of, parts))
    return WeightStruct(matrices, len(parts), pointer(weight.bias))


def pages_of(k_pages: torch.Tensor, v_pages: torch.Tensor) -> Pages:
    """K and V of a layer, both [num_pages, tokens_per_page, num_kv_heads, head_dim], strided alike.

    Raises:
        ValueError: if their strides differ or a head is not contiguous.
    """
    strides = k_pages.stride()
    if strides != v_pages.stride() or strides[3] != 1:
        raise ValueError(
            f"k_pages has strides {strides} and v_pages {v_pages.stride()}; they must be the same, "
            "and the last one 1"
        )
    num_pages, tokens_per_page = k_pages.shape[:2]
    return Pages(k_pages.data_ptr(), v_pages.data_ptr(), *strides[:3], num_pages, tokens_per_page)


def load() -> Library | None:
    """The library, or None where it is absent or refused; `status` says why."""
    return _load_once()[0]


def status() -> LibraryStatus:
    return _load_once()[1]


@functools.cache
def _load_once() -> tuple[Library | None, LibraryStatus]:
    if os.environ.get("RSD_CPU_LIBRARY", "1") == "0":
        return None, LibraryStatus("absent", "RSD_CPU_LIBRARY=0")
    return load_from(PACKAGE)


def load_from(folder: Path) -> tuple[Library | None, LibraryStatus]:
    handle, status = open_library(LIBRARY, folder, "rsd_cpu_", ABI_VERSION)
    if handle is None:
        return None, status
    library = Library(handle)
    return library, LibraryStatus("loaded", f"{status.reason}, uses {library.isa}")
