"""Blocks of GGUF as float32, in plain PyTorch: the twin of csrc/cpu/formats.h.

How a block is packed is told by ggml-common.h, and by `gguf.quants` of llama.cpp's Python package.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rsd_kernels.formats.formats import Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, MatrixFormat


def expand(
    rows: Tensor,  # [n, bytes of a row] uint8
    form: MatrixFormat,
) -> Tensor:
    """[n, num_inputs] float32: exactly what the rows stand for."""
    if form.dtype is not None:
        return rows.contiguous().view(form.dtype).float()
    blocks = rows.reshape(-1, form.block_bytes)
    return _EXPANDED[form](blocks).view(rows.shape[0], -1)


def _halves(blocks: Tensor, at: int) -> Tensor:
    """[n, 1] float32: a float16 of each block."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """The low halves of each row's bytes, then the high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _bits(packed: Tensor, shifts: list[int], mask: int = 1) -> Tensor:
    """[n, len(shifts), bytes]: the bits of every byte at each shift."""
    return packed.unsqueeze(1) >> torch.tensor(shifts, dtype=torch.uint8).view(-1, 1) & mask


def _small(blocks: Tensor, *, five_bits: bool, has_minimum: bool) -> Tensor:
    scale, at = _halves(blocks, 0), 4 if has_minimum else 2
    fifth: Tensor | int = 0
    if five_bits:
        # Bit i of the word, which is bit i % 8 of byte i // 8, belongs to element i.
        fifth = _bits(blocks[:, at : at + 4], list(range(8))).transpose(1, 2).flatten(1) << 4
        at += 4
    q = (_nibbles(blocks[:, at:]) | fifth).float()
    if has_minimum:
        return q * scale + _halves(blocks, 2)
    return (q - (16 if five_bits else 8)) * scale


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _halves(blocks, 0)


def _super(blocks: Tensor, *, five_bits: bool) -> Tensor:
    """Eight sub-blocks of 32, with six bits of scale and of minimum each in twelve bytes."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((a & 63, c & 15 | a >> 6 << 4), 1) * _halves(blocks, 0)
    minima = torch.cat((b & 63, c >> 4 | b >> 6 << 4), 1) * _halves(blocks, 2)
    packed = blocks[:, -128:].reshape(-1, 4, 32)  # of two sub-blocks each
    q = _nibbles(packed).view(-1, 8, 32)
    if five_bits:
        q = q | _bits(blocks[:, 16:48], list(range(8))) << 4
    return q * scales.unsqueeze(-1) - minima.unsqueeze(-1)


def _q6_k(blocks: Tensor) -> Tensor:
    """Two halves of 128, four low bits and two high ones; a scale for every 16."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).view(-1, 4, 32)
    high = _bits(blocks[:, 128:192].reshape(-1, 32), [0, 2, 4, 6], mask=3)
    q = (low | high << 4).view(-1, 16, 16).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8) * _halves(blocks, 208)
    return q * scales.unsqueeze(-1)


_EXPANDED: dict[MatrixFormat, Callable[[Tensor], Tensor]] = {
    Q4_0: lambda blocks: _small(blocks, five_bits=False, has_minimum=False),
    Q4_1: lambda blocks: _small(blocks, five_bits=False, has_minimum=True),
    Q5_0: lambda blocks: _small(blocks, five_bits=True, has_minimum=False),
    Q5_1: lambda blocks: _small(blocks, five_bits=True, has_minimum=True),
    Q8_0: _q8_0,
    Q4_K: lambda blocks: _super(blocks, five_bits=False),
    Q5_K: lambda blocks: _super(blocks, five_bits=True),
    Q6_K: _q6_k,
}
