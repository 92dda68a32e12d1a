"""Philox and Gumbel noise in Triton: known answers, the bits of the twins. By `test_kernel.py`."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from rsd_kernels.gumbel import twin as gumbel_twin
from rsd_kernels.gumbel.kernel import block_noise, gumbel, noise
from rsd_kernels.philox import kernel as philox_kernel
from rsd_kernels.philox import twin as philox_twin
from rsd_kernels.state.args import state_args
from rsd_kernels.state.enums import Purpose
from rsd_kernels.state.slots import SlotSizes, SlotState
from tests.kernels.gumbel.test_twin import EDGES
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
    BLOCK: tl.constexpr,
) -> None:
    o = tl.arange(0, BLOCK)
    u = philox_kernel.uniform(
        tl.load(seed + o), tl.load(sample + o), tl.load(steps + o), tl.load(position + o),
        philox_kernel.PURPOSE_ACCEPT,
    )  # fmt: skip
    tl.store(out + o, u)


@triton.jit
def _gumbel_kernel(words: tl.tensor, out: tl.tensor, BLOCK: tl.constexpr) -> None:
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + o, gumbel(tl.load(words + o).to(tl.uint32)))


@triton.jit
def _noise_kernel(
    state: tl.tuple, ids: tl.tensor, out: tl.tensor, block_out: tl.tensor, BLOCK: tl.constexpr
) -> None:
    o, first = tl.arange(0, BLOCK), tl.program_id(0) * BLOCK
    tl.store(
        out + first + o, noise(state, 1, tl.load(state.length + 1), 1, tl.load(ids + first + o))
    )
    tl.store(
        block_out + first + o, block_noise(state, 1, tl.load(state.length + 1), 1, first, BLOCK)
    )


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
    _uniform_kernel[(1,)](*inputs, out, BLOCK=64)
    expected = [
        philox_twin.uniform(
            philox_twin.DrawKey(
                int(seed[i]), int(sample[i]), int(steps[i]), int(position[i]), Purpose.ACCEPT
            )
        )
        for i in range(64)
    ]  # fmt: skip
    assert out.tolist() == expected


def test_gumbel_has_the_bits_of_the_twin() -> None:
    block = 4096
    words = np.concatenate([EDGES, np.random.default_rng(0).integers(0, 2**32, block)])
    words = words[: len(words) // block * block].astype(np.uint64)
    out = torch.empty(len(words), device=DEVICE)
    given = torch.from_numpy(words.astype(np.int64)).to(DEVICE)
    _gumbel_kernel[(len(words) // block,)](given, out, BLOCK=block)
    assert out.cpu().numpy().tolist() == gumbel_twin.gumbel(words).tolist()


def test_noise_of_ids_is_that_of_the_twin() -> None:
    """In any order, and as blocks of consecutive ids."""
    state = SlotState.allocate(SlotSizes(2, 40, 40, 4, 8, 64), DEVICE)
    for column, value in (("seed", -(2**40)), ("sample_index", 3), ("num_steps", 7)):
        getattr(state, column)[1] = value
    state.length[1] = 21
    ids = torch.randperm(256, generator=torch.Generator().manual_seed(0)).int().to(DEVICE)
    out, block_out = torch.empty(2, 256, device=DEVICE)
    _noise_kernel[(4,)](state_args(state), ids, out, block_out, BLOCK=64)
    key = philox_twin.DrawKey(-(2**40), 3, 7, 21, Purpose.TARGET_TOKEN)
    assert out.tolist() == gumbel_twin.noise(key, ids.cpu().numpy()).tolist()
    assert block_out.tolist() == gumbel_twin.noise(key, np.arange(256)).tolist()
