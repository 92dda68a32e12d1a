"""Quantises plain matrices into blocks of GGUF, in plain PyTorch: twin of csrc/cpu/quantise.h.

A block is 32 inputs of one output. Scale and minimum are rounded to float16 before values are
rounded to their steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.formats.formats import Q4_1, Q8_0, MatrixFormat
from rsd_kernels.formats.weight import StoredMatrix

_BLOCK = 32
_ROUNDS = 8  # of fitting scale and minimum
# Rows at a time: what is computed for them stays far below the size of a model.
_CHUNK_ELEMENTS = 2**22
_LARGEST_HALF = 65504


def quantise(matrix: Tensor, form: MatrixFormat) -> StoredMatrix:
    """A matrix [num_outputs, num_inputs] of floats, rounded to Q8_0 or Q4_1.

    Q8_0 takes the largest magnitude of a block as 127 steps. Q4_1 begins with the range of a block
    and then fits scale and minimum to the rounded values by least squares, as long as that lessens
    the squared error.

    Raises:
        ValueError: its rows are no whole number of blocks, or a value is not finite or beyond the
            range of a half.
    """
    num_outputs, num_inputs = matrix.shape
    row_bytes = form.row_bytes(num_inputs)
    rows = torch.empty(num_outputs, row_bytes, dtype=torch.uint8)
    step = max(1, _CHUNK_ELEMENTS // num_inputs)
    for start in range(0, num_outputs, step):
        chunk = matrix[start : start + step].float()
        if not bool((chunk.abs() <= _LARGEST_HALF).all()):
            raise ValueError("a value is not finite or beyond the range of a half")
        blocks = _PACKED[form](chunk.reshape(-1, _BLOCK))
        rows[start : start + step] = blocks.view(-1, row_bytes)
    return StoredMatrix(form, rows, num_inputs)


def _bytes(halves: Tensor) -> Tensor:
    return halves.view(torch.uint8)


def _q8_0(blocks: Tensor) -> Tensor:
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
    q = (blocks / _divisor(scale)).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat((_bytes(scale), q.view(torch.uint8)), 1)


def _q4_1(blocks: Tensor) -> Tensor:
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale, minimum = ((high - low) / 15).half(), low.half()
    q = _levels(blocks, scale, minimum)
    error = _error(blocks, q, scale, minimum)
    for _ in range(_ROUNDS):
        new_scale, new_minimum = _fitted(blocks, q)
        new_q = _levels(blocks, new_scale, new_minimum)
        new_error = _error(blocks, new_q, new_scale, new_minimum)
        better = new_error < error
        scale, minimum = (
            torch.where(better, new_scale, scale),
            torch.where(better, new_minimum, minimum),
        )
        q, error = torch.where(better, new_q, q), torch.where(better, new_error, error)
    levels = q.to(torch.uint8)
    packed = levels[:, : _BLOCK // 2] | levels[:, _BLOCK // 2 :] << 4
    return torch.cat((_bytes(scale), _bytes(minimum), packed), 1)


def _levels(blocks: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    return ((blocks - minimum.float()) / _divisor(scale)).round_().clamp_(0, 15)


def _fitted(blocks: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum [n, 1] of least squared error for given levels."""
    mean_q, mean = q.mean(1, keepdim=True), blocks.mean(1, keepdim=True)
    spread = (q - mean_q).square().sum(1, keepdim=True)
    scale = ((q - mean_q) * (blocks - mean)).sum(1, keepdim=True) / spread.clamp_min(1e-30)
    scale = scale.half()
    return scale, (mean - scale.float() * mean_q).half()


def _error(blocks: Tensor, q: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    return (q * scale.float() + minimum.float() - blocks).square().sum(1, keepdim=True)


def _divisor(scale: Tensor) -> Tensor:
    """Of a block of equal values the scale is 0, and its levels are 0 whatever it is."""
    wide = scale.float()
    return torch.where(wide == 0, torch.ones_like(wide), wide)


_PACKED = {Q8_0: _q8_0, Q4_1: _q4_1}
