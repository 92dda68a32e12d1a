"""Philox in Triton: known answers, and the bits of its twin. Run by `test_kernel.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rsd_kernels.philox import kernel as philox_kernel
from rsd_kernels.philox import twin as philox_twin
from tests.kernels.harness.tensors import DEVICE


@triton.jit
def _philox_kernel(
    words: tl.tensor, out: tl.tensor, num_lanes: tl.tensor, BLOCK: tl.constexpr
) -> None:
    o = tl.arange(0, BLOCK)
    mask = o < num_lanes
    row = words + 6 * o
    w0, w1, w2, w3 = philox_kernel.philox4x32(
        tl.load(row, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 1, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 2, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 3, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 4, mask=mask, other=0).to(tl.uint32),
        tl.load(row + 5, mask=mask, other=0).to(tl.uint32),
    )
    tl.store(out + 4 * o, w0.to(tl.int64), mask=mask)
    tl.store(out + 4 * o + 1, w1.to(tl.int64), mask=mask)
    tl.store(out + 4 * o + 2, w2.to(tl.int64), mask=mask)
    tl.store(out + 4 * o + 3, w3.to(tl.int64), mask=mask)


@triton.jit
def _uniform_kernel(
    seed: tl.tensor,
    sample: tl.tensor,
    steps: tl.tensor,
    position: tl.tensor,
    out: tl.tensor,
    role: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    o = tl.arange(0, BLOCK)
    u = philox_kernel.uniform(
        tl.load(seed + o), tl.load(sample + o), tl.load(steps + o), tl.load(position + o),
        role, philox_kernel.PURPOSE_ACCEPT,
    )  # fmt: skip
    tl.store(out + o, u)


def test_philox_known_answers() -> None:
    ones = [0xFFFFFFFF] * 6
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    words = torch.tensor([[0] * 6, ones, pi], dtype=torch.int64, device=DEVICE)
    out = torch.empty(3, 4, dtype=torch.int64, device=DEVICE)
    _philox_kernel[(1,)](words, out, 3, BLOCK=4)
    expected = [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]
    assert out.tolist() == expected


def test_uniform_has_the_bits_of_the_twin() -> None:
    generator = torch.Generator().manual_seed(3)

    def random(low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(low, high, (64,), generator=generator, dtype=dtype)

    seed = random(-(2**63), 2**63 - 1, torch.int64)
    sample, steps = random(0, 9, torch.int32), random(0, 500, torch.int32)
    position = random(0, 2**31 - 1, torch.int32)
    out = torch.empty(64, device=DEVICE)
    inputs = [t.to(DEVICE) for t in (seed, sample, steps, position)]
    _uniform_kernel[(1,)](*inputs, out, 2, BLOCK=64)
    expected = [
        philox_twin.uniform(
            int(seed[i]), int(sample[i]), num_steps=int(steps[i]), position=int(position[i]),
            role=2, purpose=philox_twin.Purpose.ACCEPT,
        )
        for i in range(64)
    ]  # fmt: skip
    assert out.tolist() == expected
