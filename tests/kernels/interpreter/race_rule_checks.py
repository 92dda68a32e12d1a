"""What counts as a race, and values as unkind as a device's. Run by `test_races.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from rsd_kernels.arrival import last_to_arrive
from tests.kernels.interpreter.race_rules import Race
from tests.kernels.interpreter.races import watching

WATCHES_ITSELF = True


@triton.jit
def _all_store_one_word(out: tl.tensor) -> None:
    tl.store(out, tl.program_id(0))


@triton.jit
def _reads_its_neighbour(out: tl.tensor) -> None:
    i = tl.program_id(0)
    tl.store(out + i + 1, tl.load(out + i) + 1)


@triton.jit
def _last_comes(out: tl.tensor) -> None:
    tl.atomic_xchg(out, tl.program_id(0))


@triton.jit
def _counts(out: tl.tensor) -> None:
    tl.atomic_add(out, 1)


@triton.jit
def _counts_and_reads(out: tl.tensor) -> None:
    tl.atomic_add(out, 1)
    tl.store(out + 1 + tl.program_id(0), tl.load(out))


@triton.jit
def _the_last_reads_all(out: tl.tensor) -> None:
    tl.store(out + 1 + tl.program_id(0), 1)
    if last_to_arrive(out + 9, 4):
        tl.store(out, tl.sum(tl.load(out + 1 + tl.arange(0, 4))))


@triton.jit
def _the_first_reads_all(out: tl.tensor) -> None:
    tl.store(out + 1 + tl.program_id(0), 1)
    if last_to_arrive(out + 9, 1):
        tl.store(out + 5 + tl.program_id(0), tl.sum(tl.load(out + 1 + tl.arange(0, 4))))


@triton.jit
def _arrives_without_a_barrier(out: tl.tensor) -> None:
    tl.store(out + 1 + tl.program_id(0), 1)
    if tl.atomic_add(out, 1, sem="acq_rel") == 3:
        tl.store(out + 5, tl.load(out + 1))


@triton.jit
def _arrives_without_order(out: tl.tensor) -> None:
    tl.store(out + 1 + tl.program_id(0), 1)
    tl.debug_barrier()
    if tl.atomic_add(out, 1, sem="relaxed") == 3:
        tl.store(out + 5, tl.load(out + 1))


@triton.jit
def _last_one_adds(
    out: tl.tensor, SEM: tl.constexpr, SCOPE: tl.constexpr, BARRIER: tl.constexpr
) -> None:
    o = tl.arange(0, 2)
    tl.store(out + 2 + 2 * tl.program_id(0) + o, o + 5)
    if BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(out, 1, sem=SEM, scope=SCOPE) == tl.num_programs(0) - 1:
        tl.store(out, 0)
        for i in range(0, tl.num_programs(0)):
            tl.store(out + 1, tl.load(out + 2 + 2 * i) + tl.load(out + 3 + 2 * i))


@triton.jit
def _first_one_adds(out: tl.tensor) -> None:
    o = tl.arange(0, 2)
    tl.store(out + 2 + 2 * tl.program_id(0) + o, o + 5)
    tl.debug_barrier()
    if tl.atomic_add(out, 1, sem="acq_rel", scope="gpu") == 0:
        for i in range(0, tl.num_programs(0)):
            tl.store(out + 1, tl.load(out + 2 + 2 * i) + tl.load(out + 3 + 2 * i))


@triton.jit
def _scalar_there_and_back(out: tl.tensor) -> None:
    p_out = out + 2 * tl.program_id(0)
    tl.store(p_out, 7)
    tl.store(p_out + 1, tl.load(p_out))


@triton.jit
def _in_place(out: tl.tensor) -> None:
    o = tl.program_id(0) * 2 + tl.arange(0, 2)
    tl.store(out + o, tl.load(out + o) + 1)


@triton.jit
def _lanes_meet(out: tl.tensor) -> None:
    o = tl.arange(0, 4)
    tl.store(out + o // 2 + 2 * tl.program_id(0), o)


@triton.jit
def _leaves_its_tensor(out: tl.tensor) -> None:
    tl.store(out + 9, tl.load(out + tl.program_id(0) * 10))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (_all_store_one_word, r"out, element 0: the store in .* and the store in .* programs 0"),
        (_reads_its_neighbour, r"the store in .* and the load in .* in programs 0 and 1"),
        (_last_comes, r"leaves other values in out, element 0 in another order of programs"),
        (_counts, None),
        (_counts_and_reads, r"the load in .* and the atomic operation in .* in programs 0 and 1"),
        (_the_last_reads_all, None),
        (_the_first_reads_all, r"the load in .* and the store in .* in programs 0 and 1"),
        (_arrives_without_a_barrier, r"the store in .* and the load in .* in programs 0 and 3"),
        (_arrives_without_order, r"the store in .* and the load in .* in programs 0 and 3"),
        (_scalar_there_and_back, r"the store in .* and the load in .* with no barrier between"),
        (_in_place, r"out, element 0: the load in .* and the store in .* with no barrier between"),
        (
            _lanes_meet,
            r"two lanes of the store in _lanes_meet \(interpreter/.*_checks.py:\d+\)",
        ),
        (_leaves_its_tensor, r"the load in .* is outside of every tensor it was given"),
    ],
)
def test_a_race_is_found(kernel: Any, message: str | None) -> None:
    out = torch.zeros(10, dtype=torch.int32)
    with watching(orders=True) as watch:
        if message is None:
            kernel[(4,)](out)
            assert watch.reordered == {kernel.__name__} and int(out[0]) == 4
        else:
            with pytest.raises(Race, match=message):
                kernel[(4,)](out)


@pytest.mark.parametrize(
    ("sem", "scope", "barrier"),
    [
        ("acq_rel", "gpu", True),
        ("acq_rel", "sys", True),
        ("acq_rel", "gpu", False),
        ("acq_rel", "cta", True),
        ("release", "gpu", True),
        ("acquire", "gpu", True),
        ("relaxed", "gpu", True),
    ],
)
def test_the_last_program_may_read_what_the_others_released(
    sem: str, scope: str, barrier: bool
) -> None:
    out = torch.zeros(10, dtype=torch.int32)
    with watching(orders=True):
        if sem == "acq_rel" and scope != "cta" and barrier:
            _last_one_adds[(4,)](out, sem, scope, barrier)
            assert out.tolist() == [0, 11] + [5, 6] * 4
            return
        with pytest.raises(Race, match=r"the store in .* and the load in .* in programs 0 and 3"):
            _last_one_adds[(4,)](out, sem, scope, barrier)


def test_no_other_program_may() -> None:
    with (
        watching(orders=True),
        pytest.raises(Race, match=r"the load in .* and the store in .* in programs 0 and 1"),
    ):
        _first_one_adds[(4,)](torch.zeros(10, dtype=torch.int32))


@triton.jit
def _loads_nothing(real: tl.tensor, whole: tl.tensor) -> None:
    o = tl.arange(0, 4)
    b_real, b_whole = tl.load(real + o, mask=o < 2), tl.load(whole + o, mask=o < 2)
    tl.debug_barrier()
    tl.store(real + o, b_real)
    tl.store(whole + o, b_whole)


@triton.jit
def _clamps(real: tl.tensor, out: tl.tensor) -> None:
    o = tl.arange(0, 4)
    b_real = tl.load(real + o)
    tl.store(out + o, tl.maximum(b_real, 0.0) + tl.minimum(b_real, 0.0))


@triton.jit
def _multiplies(real: tl.tensor, out: tl.tensor) -> None:
    o = tl.arange(0, 16)
    b_real = tl.load(real + 16 * o[:, None] + o[None, :])
    tl.store(out + 16 * o[:, None] + o[None, :], tl.dot(b_real, b_real))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_not_loaded_may_be_anything(dtype: torch.dtype) -> None:
    real, whole = torch.zeros(4, dtype=dtype), torch.zeros(4, dtype=torch.int32)
    _loads_nothing[(1,)](real, whole)
    assert real.isnan().tolist() == [False, False, True, True]
    assert whole.tolist() == [0, 0, 0x5A5A5A5A, 0x5A5A5A5A]


def test_the_larger_of_a_number_and_nan_is_the_number() -> None:
    real, out = torch.tensor([torch.nan, 2.0, -3.0, torch.nan]), torch.empty(4)
    _clamps[(1,)](real, out)
    assert out.tolist() == [0.0, 2.0, -3.0, 0.0]


def test_a_product_in_tf32_is_refused() -> None:
    with pytest.raises(Exception, match="this product would be rounded to TF32"):
        _multiplies[(1,)](torch.ones(16, 16), torch.empty(16, 16))
    _multiplies[(1,)](torch.ones(16, 16).half(), torch.empty(16, 16))


def test_new_memory_may_hold_anything() -> None:
    assert bool(torch.empty(9).isnan().all())
    assert bool((torch.empty(9, dtype=torch.int32) == 2**31 - 1).all())
