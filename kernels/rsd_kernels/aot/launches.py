"""Every Triton launch of a forward, in the shapes of known models, to compile ahead of time.

The launches come from the launchers themselves, called with tensors without memory (device "meta"):
tiles, warps and strides are those that ship. Those of loop ops are in `loop_launches`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.activation.kernel import gate_mul_launch
from rsd_kernels.aot.loop_launches import PAGE_BYTES, loop_launches
from rsd_kernels.attention.kernel import attention_launch
from rsd_kernels.attention.map import AttentionMap
from rsd_kernels.embedding.kernel import embed_launch
from rsd_kernels.grouped.kernel import grouped_rows_launch
from rsd_kernels.grouped.matrix import MIN_GROUP, GroupedMatrix, ValueKind
from rsd_kernels.grouped.weight import DeviceWeight, GroupedWeight
from rsd_kernels.launch import OVERLAP_ROWS, Launch, ceil_div
from rsd_kernels.linear.kernel import projection_launch
from rsd_kernels.linear.tiles import MAX_ROWS
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.norm.kernel import rms_norm_launch
from rsd_kernels.qkv.kernel import qkv_projection_launch
from rsd_kernels.rope.kernel import rope_kv_write_launch
from rsd_kernels.state.rows import RowBatch

_META = torch.device("meta")
_NUM_SLOTS = 16
_NUM_POSITIONS = 32768
ROWS = (1, 2, 4, 16, 64, 256)  # the loop's row buckets, and the rows of every tile


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder that matter to its kernels."""

    hidden: int
    intermediate: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    qkv_bias: bool
    qk_norm: bool = False
    gelu: bool = False  # the gate's activation is GELU, not SiLU
    norms: str = "before"  # blocks, "after" (OLMo 2) or "both" (Gemma 3)


MODEL_SHAPES = {
    "Qwen2.5-0.5B": DecoderShape(896, 4864, 24, 14, 2, 64, 151936, True),
    "Qwen2.5-1.5B": DecoderShape(1536, 8960, 28, 12, 2, 128, 151936, True),
    "Qwen2.5-7B": DecoderShape(3584, 18944, 28, 28, 4, 128, 152064, True),
    "Llama-3.2-1B": DecoderShape(2048, 8192, 16, 32, 8, 64, 128256, False),
}


@dataclass(frozen=True)
class ShippedLaunch:
    """One launch that ships, and what it is for."""

    op: str
    shape: str
    num_rows: int  # 0: it does not depend on this
    launch: Launch

    @property
    def overlap(self) -> bool:
        """True for the variant that may start early, on devices from sm_90 on."""
        return self.launch.overlap

    @property
    def decode(self) -> bool:
        """True for passes so small that sequences in them write a token at a time."""
        return self.num_rows <= MAX_ROWS


def shipped_launches(
    dtype: torch.dtype = torch.bfloat16, rows: tuple[int, ...] = ROWS
) -> Iterator[ShippedLaunch]:
    """Everything the engine launches on models of `dtype`, the loop ops last.

    Weights in few bits are for models of 16 bits; in fp32 they are right, but no faster.
    """
    for name, shape in MODEL_SHAPES.items():
        for num_rows in rows:
            yield from forward_launches(name, shape, num_rows, dtype)
            yield from overlapped_launches(name, shape, num_rows, dtype)
    for form in GROUPED_FORMS if dtype.itemsize == 2 else ():
        for num_rows in sorted({*rows} & {*_GROUPED_ROWS}):
            yield from grouped_launches(_GROUPED_SHAPE, num_rows, form, dtype)
    for op, launch in loop_launches(_NUM_SLOTS).items():
        yield ShippedLaunch(op, f"{_NUM_SLOTS} slots", 0, launch)


def forward_launches(
    name: str, shape: DecoderShape, num_rows: int, dtype: torch.dtype = torch.bfloat16
) -> Iterator[ShippedLaunch]:
    """What a pass of `num_rows` rows launches, one layer for all; nothing overlaps."""
    for op, launch in _Forward(shape, num_rows, dtype).launches():
        yield ShippedLaunch(op, name, num_rows, replace(launch, overlap=False))


def overlapped_launches(
    name: str, shape: DecoderShape, num_rows: int, dtype: torch.dtype = torch.bfloat16
) -> Iterator[ShippedLaunch]:
    """The kernels of such a pass that may start early, in that variant."""
    if num_rows > OVERLAP_ROWS:
        return
    for op, launch in _Forward(shape, num_rows, dtype).launches():
        if launch.has_wait:
            yield ShippedLaunch(f"{op}, early", name, num_rows, replace(launch, overlap=True))


def grouped_launches(
    name: str, num_rows: int, form: str, dtype: torch.dtype = torch.bfloat16
) -> Iterator[ShippedLaunch]:
    """The products of such a pass with weights in few bits, in both variants where there are two.

    form: of `GROUPED_FORMS`.
    """
    shape, grouped = MODEL_SHAPES[name], GROUPED_FORMS[form]
    for op, launch in _Forward(shape, num_rows, dtype, grouped).products():
        yield ShippedLaunch(f"{op}, {form}", name, num_rows, replace(launch, overlap=False))
        if launch.has_wait:
            early = replace(launch, overlap=True)
            yield ShippedLaunch(f"{op}, {form}, early", name, num_rows, early)


@dataclass(frozen=True)
class GroupedForm:
    """How checkpoints hold their matrices; fields as in `GroupedMatrix`."""

    kind: ValueKind
    group_size: int | None = None  # None: all inputs
    scale_rows: int = 1
    zeros: bool = False
    order: bool = False
    scale_dtype: torch.dtype = torch.float16

    def weight(self, num_outputs: int, num_inputs: int, bias: Tensor | None) -> GroupedWeight:
        """Without memory."""
        kind, group = self.kind, self.group_size or num_inputs
        shape, dtype = (num_outputs, num_inputs), torch.int8
        if kind.shifts:
            line = MIN_GROUP * len(kind.shifts)
            shape, dtype = (num_outputs, ceil_div(num_inputs, line) * 32), torch.int32
        groups, scale_rows = num_inputs // group, ceil_div(num_outputs, self.scale_rows)
        scales = torch.empty(groups, scale_rows, dtype=self.scale_dtype, device=_META).t()
        zeros = torch.empty(groups, num_outputs, dtype=torch.int8, device=_META).t()
        order = torch.empty(num_inputs, dtype=torch.int32, device=_META)
        matrix = GroupedMatrix(
            kind, torch.empty(shape, dtype=dtype, device=_META), scales,
            zeros if self.zeros else None, num_inputs, group, self.scale_rows,
            order if self.order else None,
        )  # fmt: skip
        return GroupedWeight(matrix, bias)


GROUPED_FORMS = {
    "int4": GroupedForm(ValueKind.INT4, 128),
    "int4, zeros": GroupedForm(ValueKind.INT4, 128, zeros=True),
    "int4, groups of 32": GroupedForm(ValueKind.INT4, 32, zeros=True),
    "int4, act-order": GroupedForm(ValueKind.INT4, 128, zeros=True, order=True),
    "int8": GroupedForm(ValueKind.INT8, 128),
    "fp8, blocks": GroupedForm(ValueKind.FP8, 128, 128, scale_dtype=torch.float32),
    "fp8": GroupedForm(ValueKind.FP8, scale_dtype=torch.float32),
}
_GROUPED_SHAPE, _GROUPED_ROWS = "Qwen2.5-7B", (1, 16, 64, 256)  # one of every tile


@dataclass(frozen=True)
class _Forward:
    """One layer of a pass, with its embedding and its heads."""

    shape: DecoderShape
    num_rows: int
    dtype: torch.dtype
    grouped: GroupedForm | None = None  # its products, in few bits

    def products(self) -> Iterator[tuple[str, Launch]]:
        """All that read weights but the heads."""
        if self.num_rows <= MAX_ROWS:
            yield from (pair for pair in self._attention() if pair[0] == "qkv_projection")
            yield from self._small_products()
        elif self.grouped is not None:
            x, weight = self._rows(self.shape.hidden), self._qkv()
            assert isinstance(weight, GroupedWeight)
            yield "linear (qkv)", grouped_rows_launch(x, weight, out=self._rows(weight.num_outputs))

    def launches(self) -> Iterator[tuple[str, Launch]]:
        shape, num_rows = self.shape, self.num_rows
        hidden, last = self._rows(shape.hidden), self._matrix(self._batch.num_places, shape.hidden)
        norm = self._vector(shape.hidden)
        token = torch.empty(num_rows, dtype=torch.int32, device=_META)
        yield "embed", embed_launch(self._matrix(shape.vocab, shape.hidden), token, out=hidden)
        yield from self._attention()
        if num_rows <= MAX_ROWS:
            yield from self._small_products()
        else:
            yield "rms_norm", rms_norm_launch(hidden, norm, 1e-6, out=hidden)
            gate_up = self._rows(2 * shape.intermediate)
            gated = self._rows(shape.intermediate)
            yield "gate_mul", gate_mul_launch(gate_up, gelu=shape.gelu, out=gated)
        if shape.norms != "before":
            add = rms_norm_launch(hidden, norm, 1e-6, out=hidden, residual=hidden)
            yield "rms_norm + residual", add
        end = self._batch.place_row_end
        yield "rows_norm", rms_norm_launch(hidden, norm, 1e-6, out=last, row_end=end)
        weight = self._weight(shape.vocab, shape.hidden)
        logits = torch.empty(self._batch.num_places, shape.vocab, dtype=torch.float32, device=_META)
        yield "lm_head", projection_launch(last, weight, out=logits)

    def _small_products(self) -> Iterator[tuple[str, Launch]]:
        shape, inter = self.shape, self.shape.intermediate
        hidden = self._rows(shape.hidden)
        norm: dict[str, Any] = {"norm": self._norm_before(), "eps": 1e-6}
        weight = self._qkv()
        out = self._rows(weight.num_outputs)
        yield "norm_linear (qkv)", projection_launch(hidden, weight, out=out, **norm)
        weight, out = self._weight(2 * inter, shape.hidden), self._rows(inter)
        gate: dict[str, Any] = {"gated": True, "gelu": shape.gelu}
        yield "norm_gate_up", projection_launch(hidden, weight, out=out, **norm, **gate)
        residual = hidden if shape.norms == "before" else None
        for op, width in (("o", shape.num_q_heads * shape.head_dim), ("down", inter)):
            x, weight = self._rows(width), self._weight(shape.hidden, width)
            yield f"linear ({op})", projection_launch(x, weight, out=hidden, residual=residual)

    def _attention(self) -> Iterator[tuple[str, Launch]]:
        shape, batch = self.shape, self._batch
        k_pages, v_pages = self._pages()
        num_heads = shape.num_q_heads + 2 * shape.num_kv_heads
        qkv = self._rows(num_heads * shape.head_dim).view(self.num_rows, num_heads, shape.head_dim)
        angles = torch.empty(_NUM_POSITIONS, shape.head_dim, dtype=torch.float32, device=_META)
        head_norm = self._vector(shape.head_dim) if shape.qk_norm else None
        where = (qkv, k_pages, v_pages, batch.page, batch.offset, angles, angles)
        position = batch.position
        if self.num_rows <= MAX_ROWS and not shape.qk_norm:
            hidden, norm = self._rows(shape.hidden), self._norm_before()
            launch = qkv_projection_launch(
                hidden, norm, 1e-6, self._qkv(), *where, position=position, scheduled=True
            )
            yield "qkv_projection", launch
        launch = rope_kv_write_launch(
            *where, position=position, q_norm=head_norm, k_norm=head_norm, eps=1e-6, scheduled=True
        )
        yield "rope_kv_write", launch
        q = qkv[:, : shape.num_q_heads]
        table = torch.empty(_NUM_SLOTS, 2048, dtype=torch.int32, device=_META)
        key_map = AttentionMap(batch, table, k_pages.shape[1], None, ())
        out = torch.empty(q.shape, dtype=self.dtype, device=_META)
        launch = attention_launch(
            q, k_pages, v_pages, key_map, scale=shape.head_dim**-0.5, out=out, scheduled=True
        )
        yield "paged_attention", launch

    def _norm_before(self) -> Tensor | None:
        return None if self.shape.norms == "after" else self._vector(self.shape.hidden)

    def _qkv(self) -> DeviceWeight:
        shape = self.shape
        num_outputs = (shape.num_q_heads + 2 * shape.num_kv_heads) * shape.head_dim
        return self._weight(num_outputs, shape.hidden, bias=shape.qkv_bias)

    def _pages(self) -> tuple[Tensor, Tensor]:
        """K and V of the first layer, as the page pool lays them out."""
        shape, size = self.shape, self.dtype.itemsize
        token = shape.num_kv_heads * shape.head_dim
        per_page = PAGE_BYTES // (2 * shape.num_layers * token * size)
        stride = PAGE_BYTES // size
        pool = torch.empty(64 * stride, dtype=self.dtype, device=_META)
        sizes = (64, per_page, shape.num_kv_heads, shape.head_dim)
        strides = (stride, token, shape.head_dim, 1)
        return (
            pool.as_strided(sizes, strides, 0),
            pool.as_strided(sizes, strides, per_page * token),
        )

    @property
    def _batch(self) -> RowBatch:
        return RowBatch.allocate(self.num_rows, min(self.num_rows, _NUM_SLOTS), _META)

    def _weight(self, num_outputs: int, num_inputs: int, *, bias: bool = False) -> DeviceWeight:
        vector = self._vector(num_outputs) if bias else None
        if self.grouped is not None:
            return self.grouped.weight(num_outputs, num_inputs, vector)
        return LinearWeight(self._matrix(num_outputs, num_inputs), vector)

    def _rows(self, width: int) -> Tensor:
        return self._matrix(self.num_rows, width)

    def _matrix(self, rows: int, width: int) -> Tensor:
        return torch.empty(rows, width, dtype=self.dtype, device=_META)

    def _vector(self, width: int) -> Tensor:
        return torch.empty(width, dtype=self.dtype, device=_META)
