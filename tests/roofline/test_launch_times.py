"""The expected time of launches against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from rsd_engine.roofline.formats import find_format
from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.launch_times import LaunchCost, Load
from rsd_engine.roofline.tick_times import tick_time
from rsd_engine.roofline.ticks import Tick
from rsd_kernels.launch import Launch

# 1 byte per picosecond, of which a product's loop gets 95 %; 100 multiprocessors.
GPU = Device("x", 1e12, 1e15, 1e10, multiprocessors=100, starts_early=True)
ONE = Load(num_seqs=1, context=1000)
MICRO = 1e-6


class Bundle(NamedTuple):
    """As kernels take several tensors as one argument."""

    arrived: torch.Tensor


def launch(grid: tuple[int, ...] = (400,), *, warps: int = 4, **args: Any) -> Launch:
    kernel = SimpleNamespace(__name__="_some_kernel", arg_names=[*args, "OVERLAP"])
    return Launch(kernel, grid, args, num_warps=warps)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def seconds(made: Launch, load: Load = ONE, device: Device = GPU) -> float:
    return LaunchCost.of(made, load).seconds(device)


def test_a_product_takes_gap_first_read_and_bytes() -> None:
    """2 MB in one full wave of 400 programs."""
    made = launch(weight=empty(1000, 1000), norm=empty(1000), x=empty(1, 1000))
    expected = 1.3 * MICRO + 0.5 * MICRO + 2_002_000 / 0.95e12
    assert seconds(made) == pytest.approx(expected, rel=1e-9)


def test_a_few_programs_too_many_read_slower() -> None:
    """Of 410 programs 10 are left for a second wave, each on a multiprocessor of its own."""
    made = launch((410,), weight=empty(1000, 1025))
    each = 2 * 1000 * 1025 / 410 / 0.95e12
    expected = 1.8 * MICRO + 400 * each + each * 100 / 2
    assert seconds(made) == pytest.approx(expected, rel=1e-9)
    # 300 more fill the memory's pipe, though not the device.
    made = launch((700,), weight=empty(1000, 700))
    assert seconds(made) == pytest.approx(1.8 * MICRO + 1.4e6 / 0.95e12, rel=1e-9)


def test_wide_programs_make_small_waves() -> None:
    """8 warps: 200 programs at a time, so 201 need a second wave."""
    made = launch((201,), warps=8, weight=empty(1000, 201))
    each = 2000 / 0.95e12
    assert seconds(made) == pytest.approx(1.8 * MICRO + 200 * each + 50 * each, rel=1e-9)


def test_attention_reads_keys_and_values_of_every_sequence() -> None:
    """Sequence, page and key: three reads one after the other. A window limits the bytes."""
    pages = empty(9, 16, 2, 128)

    def attend(window: int) -> Launch:
        table = empty(4, 9, dtype=torch.int32)
        return launch(page_table=table, k_pages=pages, v_pages=pages, WINDOW=window)

    made = attend(0)
    expected = 2.8 * MICRO + 3 * 1000 * 2 * 2 * 128 * 2 / 0.95e12
    assert seconds(made, Load(3, 1000)) == pytest.approx(expected, rel=1e-9)
    made = attend(100)
    expected = 2.8 * MICRO + 3 * 100 * 2 * 2 * 128 * 2 / 0.95e12
    assert seconds(made, Load(3, 1000)) == pytest.approx(expected, rel=1e-9)
    # Who only writes K and V reads none.
    assert LaunchCost.of(launch(k_pages=pages, v_pages=pages), ONE).num_bytes == 0


def test_an_embedding_looks_rows_up() -> None:
    made = launch((1, 1), table=empty(10**6, 512), token=empty(1), out=empty(1, 512))
    cost = LaunchCost.of(made, ONE)
    assert (cost.num_bytes, cost.serial_reads) == (1024, 2)


def test_loop_ops_take_reads_that_follow_one_another() -> None:
    """Whoever has as many programs as places leaves the logits to others."""
    logits = empty(2, 1000, dtype=torch.float32)
    narrow, wide = (launch(grid, state=(), logits=logits) for grid in ((2,), (2, 50)))
    two = Load(2, 1000)
    assert seconds(narrow, two) == pytest.approx(3.3 * MICRO, rel=1e-9)
    assert LaunchCost.of(wide, two).num_bytes == 8000


def test_what_the_schedule_has_written_is_read_before_the_wait() -> None:
    """0.7 and one read, where the kernel starts early and may do so."""
    for early, scheduled, expected in ((False, True, 2.3), (True, False, 1.7), (True, True, 1.2)):
        made = launch(position=empty(1), SCHEDULED=scheduled)
        assert seconds(replace(made, overlap=early)) == pytest.approx(expected * MICRO, rel=1e-9)


def test_programs_that_meet() -> None:
    """The last to arrive asks a counter, in an argument or in a bundle, and reads once more."""
    counter = empty(1, dtype=torch.int32)
    for made in (launch(arrived=counter), launch(scratch=Bundle(counter))):
        assert LaunchCost.of(made, ONE).serial_reads == 3
    assert LaunchCost.of(launch(arrived=None), ONE).serial_reads == 1  # no splits, no meeting


def test_a_tick_by_kernel() -> None:
    """Equal launches are one row; on a device without early starts nothing starts early."""
    product = launch(weight=empty(1000, 1000))
    bytes_seconds = 2e6 / 0.95e12
    plain_only = SimpleNamespace(__name__="plain_kernel", arg_names=["state"])
    tick = Tick(
        [product, product, launch(weight=empty(1000, 1000))],
        {"schedule": [Launch(plain_only, (1,), {"state": ()})]}, num_arms=1,
    )  # fmt: skip
    plain, early = (tick_time(tick, ONE, GPU, early=early) for early in (False, True))
    [row] = plain.forward
    assert (row.name, row.launches, row.weight) == ("_some_kernel", 3, (1000, 1000))
    assert plain.forward_seconds == pytest.approx(3 * (1.8 * MICRO + bytes_seconds), rel=1e-9)
    assert early.forward_seconds == pytest.approx(3 * (1.2 * MICRO + bytes_seconds), rel=1e-9)
    for found in (plain, early):  # schedule: 1.3 + 4 * 0.5, arm: 1.3 + 2 * 0.5
        assert found.seconds - found.forward_seconds == pytest.approx(5.6 * MICRO, rel=1e-9)
    assert plain.num_bytes == 6e6
    assert plain.share(GPU) == pytest.approx(6e-6 / plain.forward_seconds, rel=1e-9)
    old = Device("old", 1e12, 1e15, 1e10, multiprocessors=100)
    assert tick_time(tick, ONE, old, early=True) == tick_time(tick, ONE, old)


def test_a_weight_that_an_earlier_launch_has_fetched() -> None:
    """Of 6 MB, as far as it is asked for, and no more than 0.9 us read."""
    weight, other = empty(1000, 3000), empty(10, 10)
    small = launch((1,), position=empty(1))

    def last_of(lines: int) -> float:
        first = launch(weight=other, ahead=weight, ahead_lines=lines)
        tick = Tick([first, small, launch(weight=weight)], {}, num_arms=0)
        return tick_time(tick, ONE, GPU).forward[-1].seconds

    nothing = 1.8 * MICRO + 6e6 / 0.95e12
    assert last_of(0) == pytest.approx(nothing, rel=1e-9)
    assert last_of(1000) == pytest.approx(nothing - 128e3 / 0.95e12, rel=1e-9)
    assert last_of(50_000) == pytest.approx(nothing - 0.9 * MICRO, rel=1e-9)


def quantised(name: str, norm: torch.Tensor | None = None) -> LaunchCost:
    made = launch(weight=empty(1000, 1000), norm=norm)
    return LaunchCost.of(made, ONE, find_format(name))


def test_weights_in_few_bits_are_unpacked_while_they_are_read() -> None:
    """1e6 weights: whichever takes longer, 100 multiprocessors of 2.24e11 instructions a second."""
    cost = quantised("fp8")
    assert cost.num_bytes == pytest.approx(1e6 * (8 + 32 / 128**2) / 8)
    assert cost.instructions == 1e6 * 5.8
    assert cost.seconds(GPU) == pytest.approx(1.8 * MICRO + cost.num_bytes / 0.95e12, rel=1e-9)
    fast = replace(GPU, bandwidth=1e13)
    assert cost.seconds(fast) == pytest.approx(1.8 * MICRO + 5.8e6 / 2.24e13, rel=1e-9)
    cost = quantised("int4", norm=empty(1000))
    assert cost.instructions == pytest.approx(1e6 * (4.7 + 1.7))
    assert cost.num_bytes == 1e6 * (4 + 20 / 128) / 8 + 2000


def test_a_tick_of_quantised_layers() -> None:
    """Only the matrices that are named are; what is fetched ahead of one counts as before."""
    of_layer, head = empty(1000, 2000), empty(1000, 3000)
    products = [
        launch(weight=of_layer, ahead=head, ahead_lines=1000),
        launch(weight=head),
    ]
    tick = Tick(products, {}, num_arms=0, layers=frozenset({id(of_layer)}))
    found = tick_time(tick, ONE, GPU, weights=find_format("int8-channel"))
    first, last = found.forward
    assert (first.num_bytes, last.num_bytes) == (2e6, 6e6)
    assert last.seconds == pytest.approx(1.8 * MICRO + (6e6 - 128e3) / 0.95e12, rel=1e-9)
    assert tick_time(tick, ONE, GPU).forward[0].num_bytes == 4e6


def test_weights_that_no_product_reads() -> None:
    with pytest.raises(ValueError, match="no product on a GPU reads q4_k, which is expanded"):
        quantised("q4_k")


def test_a_device_whose_multiprocessors_are_not_known() -> None:
    with pytest.raises(ValueError, match="the multiprocessors of y are not known"):
        seconds(launch(weight=empty(2, 2)), device=Device("y", 1e12, 1e15, 1e10))
