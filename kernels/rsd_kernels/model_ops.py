"""The ops of a model's forward: Triton on a CUDA device, the CPU library or the twins elsewhere.

Attention may also come from the flash-attn library, see `rsd_kernels.attention.flash`.

A model chooses its ops once, by the device and dtype of its weights. Triton is imported only if it
is chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.attention import flash as flash_attention
from rsd_kernels.attention.map import AttentionMap, AttentionScratch
from rsd_kernels.attention.twin import attention_map, paged_attention
from rsd_kernels.cpu import library as cpu_library
from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.cpu.decoder import CpuDecoder, DecoderParts, cpu_decoder
from rsd_kernels.cuda import decode_projection as cuda_projection
from rsd_kernels.embedding.twin import embed
from rsd_kernels.launch import runs_on
from rsd_kernels.linear.twin import linear, norm_gate_up, norm_linear
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.norm.twin import rms_norm, rows_norm
from rsd_kernels.qkv.twin import in_two, qkv_projection
from rsd_kernels.rope.tables import rope_rows
from rsd_kernels.rope.twin import rope_kv_write
from rsd_kernels.state.rows import RowBatch

Op = Callable[..., Any]
Scratch = AttentionScratch | None


@dataclass(frozen=True)
class ModelOps:
    """One function for each op, with the arguments and results of the twin of the same name."""

    backend: str
    embed: Op
    norm_linear: Op
    norm_gate_up: Op
    linear: Op
    rope_kv_write: Op
    qkv_projection: Op  # norm_linear and rope_kv_write
    paged_attention: Op
    rms_norm: Op
    rows_norm: Op
    lm_head: Op  # (x [S, K], weight [V, K], *, out [S, V]): `linear` in the dtype of `out`
    attention_map: Callable[[RowBatch, Tensor, int, int | None, torch.dtype, Scratch], Any]
    attention_scratch: Op  # as in `rsd_kernels.attention.tiles`; None where none is needed
    # (cos table, sin table, position [N]) -> cos, sin and position as rope_kv_write takes them
    rope_angles: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
    # all layers in one call; None where the ops above must be called one by one
    whole_decoder: Callable[[DecoderParts], CpuDecoder | None]
    page_multiple: int = 1  # tokens of a page should be a multiple of this


def model_ops(
    tensor: Tensor, *, scheduled: bool = False, decode_projection: str | None = None
) -> ModelOps:
    """The ops for tensors of the device and dtype of this one.

    scheduled: every pass begins with `embed`, and nothing writes row batches or page tables until
        it ends. Kernels that start early may then read them at once, see `rsd_kernels.overlap`.
    decode_projection: as in `triton_ops`; it has no effect elsewhere.
    """
    if not runs_on(tensor):
        on_library = cpu_ops.suits(tensor) and cpu_ops.available()
        return cpu_library_ops() if on_library else TWINS
    ops = triton_ops(scheduled=scheduled, decode_projection=decode_projection)
    if flash_attention.refusal(tensor.device, tensor.dtype) is None:
        return flash_attention.over(ops)
    return ops


def triton_ops(*, scheduled: bool = False, decode_projection: str | None = None) -> ModelOps:
    """The Triton launchers; `scheduled` as in `model_ops`.

    decode_projection: what makes products of a few rows, "triton" or "cuda" (Triton still, where
        the CUDA library is absent or cannot take them). None: as RSD_DECODE_PROJECTION says.

    Raises:
        ImportError: if Triton is not installed.
        ValueError: RSD_DECODE_PROJECTION is neither of the two.
    """
    from rsd_kernels.attention import kernel as paged_attention
    from rsd_kernels.attention.tiles import attention_scratch
    from rsd_kernels.embedding import kernel as embedding
    from rsd_kernels.linear import launchers as products
    from rsd_kernels.norm import kernel as norms
    from rsd_kernels.qkv import kernel as qkv_projection
    from rsd_kernels.rope import kernel as rope_kv_write

    library = cuda_projection.library_for(decode_projection or cuda_projection.chosen())
    linear = functools.partial(products.linear, cuda_library=library)
    return ModelOps(
        backend="triton",
        embed=embedding.embed,
        norm_linear=functools.partial(products.norm_linear, cuda_library=library),
        norm_gate_up=functools.partial(products.norm_gate_up, cuda_library=library),
        linear=linear,
        rope_kv_write=functools.partial(rope_kv_write.rope_kv_write, scheduled=scheduled),
        qkv_projection=functools.partial(qkv_projection.qkv_projection, scheduled=scheduled),
        paged_attention=functools.partial(paged_attention.paged_attention, scheduled=scheduled),
        rms_norm=norms.rms_norm,
        rows_norm=norms.rows_norm,
        lm_head=linear,
        attention_map=_map_on_device,
        attention_scratch=attention_scratch,
        rope_angles=_angles_by_position,
        whole_decoder=_no_whole_decoder,
    )


@functools.cache
def cpu_library_ops() -> ModelOps:
    """The ops of the CPU library, for float32. It must be loaded, see `cpu_library.status`."""
    library = cpu_library.load()
    if library is None:
        raise RuntimeError(f"the CPU library is {cpu_library.status()}")
    return ModelOps(
        backend=f"CPU library ({library.isa})",
        embed=cpu_ops.embed,
        norm_linear=cpu_ops.norm_linear,
        norm_gate_up=cpu_ops.norm_gate_up,
        linear=cpu_ops.linear,
        rope_kv_write=cpu_ops.rope_kv_write,
        qkv_projection=in_two(cpu_ops.norm_linear, cpu_ops.rope_kv_write),
        paged_attention=cpu_ops.paged_attention,
        rms_norm=rms_norm,
        rows_norm=cpu_ops.rows_norm,
        lm_head=_lm_head_by(cpu_ops.linear),
        attention_map=_map_on_device,
        attention_scratch=_no_scratch,
        rope_angles=_angles_by_position,
        whole_decoder=cpu_decoder,
    )


def _map_on_device(
    batch: RowBatch,
    page_table: Tensor,
    tokens_per_page: int,
    sliding_window: int | None,
    dtype: torch.dtype,
    scratch: AttentionScratch | None,
) -> AttentionMap:
    """Nothing is computed here: the kernel reads lengths and page tables itself."""
    del dtype
    return AttentionMap(batch, page_table, tokens_per_page, sliding_window, (), scratch)


def _map_on_host(
    batch: RowBatch,
    page_table: Tensor,
    tokens_per_page: int,
    sliding_window: int | None,
    dtype: torch.dtype,
    scratch: AttentionScratch | None,
) -> AttentionMap:
    del scratch
    return attention_map(batch, page_table, tokens_per_page, sliding_window, dtype)


def _angles_by_position(
    cos: Tensor, sin: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    return cos, sin, position


def _gathered_angles(
    cos: Tensor, sin: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gathers the angles once for all layers of a pass."""
    return *rope_rows(cos, sin, position), None


def _lm_head_by(product: Op) -> Op:
    def lm_head(x: Tensor, weight: LinearWeight, *, out: Tensor) -> Tensor:
        if out.dtype == x.dtype:
            return product(x, weight, out=out)
        return out.copy_(product(x, weight))

    return lm_head


def _no_scratch(*sizes: Any) -> None:
    del sizes


def _no_whole_decoder(parts: DecoderParts) -> CpuDecoder | None:
    del parts
    return None


TWINS = ModelOps(
    backend="PyTorch",
    embed=embed,
    norm_linear=norm_linear,
    norm_gate_up=norm_gate_up,
    linear=linear,
    rope_kv_write=rope_kv_write,
    qkv_projection=qkv_projection,
    paged_attention=paged_attention,
    rms_norm=rms_norm,
    rows_norm=rows_norm,
    lm_head=_lm_head_by(linear),
    attention_map=_map_on_host,
    attention_scratch=_no_scratch,
    rope_angles=_gathered_angles,
    whole_decoder=_no_whole_decoder,
)
