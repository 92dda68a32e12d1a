"""How products are cut: what a device holds, what is on its way, what is fetched ahead."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.linear import tiles
from rsd_kernels.linear.tiles import (
    FLIGHT_BYTES,
    ProjectionTiles,
    projection_tiles,
)

MULTIPROCESSORS = 132
# outputs (pairs if gated), inputs, gated, normed: of Qwen2.5 0.5B, 1.5B and 7B
PRODUCTS = {
    "0.5B": {
        "qkv": (576, 896, True, True),
        "o": (896, 896, False, False),
        "gate_up": (4864, 896, True, True),
        "down": (896, 4864, False, False),
    },
    "1.5B": {
        "qkv": (1024, 1536, True, True),
        "o": (1536, 1536, False, False),
        "gate_up": (8960, 1536, True, True),
        "down": (1536, 8960, False, False),
        "lm_head": (151936, 1536, False, False),
    },
    "7B": {
        "qkv": (2304, 3584, True, True),
        "o": (3584, 3584, False, False),
        "gate_up": (18944, 3584, True, True),
        "down": (3584, 18944, False, False),
    },
}
CASES = [
    (model, op, rows) for model, ops in PRODUCTS.items() for op in ops for rows in (1, 2, 4, 9)
]


def cut(model: str, op: str, rows: int) -> ProjectionTiles:
    outputs, inputs, gated, normed = PRODUCTS[model][op]
    dtype = torch.bfloat16
    return projection_tiles(rows, outputs, inputs, gated=gated, normed=normed, dtype=dtype)


@pytest.mark.parametrize(
    ("model", "op", "rows"),
    # Registers hold no larger tiles of that product, which does not loop over them.
    [case for case in CASES if case[:2] != ("7B", "qkv") or case[2] not in (2, 4)],
)
def test_all_programs_are_resident_and_have_equal_work(model: str, op: str, rows: int) -> None:
    found = cut(model, op, rows)
    programs = found.programs(MULTIPROCESSORS)
    assert programs <= 3 * MULTIPROCESSORS
    turns = -(-found.num_tiles // programs)
    # So many more tiles would have fitted into the same time.
    assert (turns * programs - found.num_tiles) / found.num_tiles < 0.02
    assert found.num_tiles * found.block_n >= PRODUCTS[model][op][0]


@pytest.mark.parametrize(("model", "op", "rows"), CASES)
def test_enough_is_on_its_way(model: str, op: str, rows: int) -> None:
    """All of a weight, or what memory delivers within its latency."""
    outputs, inputs, gated, _ = PRODUCTS[model][op]
    found = cut(model, op, rows)
    program = found.block_n * (2 if gated else 1) * 2 * found.block_k * (found.num_stages - 1)
    flight = min(found.programs(MULTIPROCESSORS), 3 * MULTIPROCESSORS) * program
    least = min(FLIGHT_BYTES // 2, outputs * (2 if gated else 1) * inputs * 2 // 2)
    assert flight >= least


def test_the_grid_follows_the_device_and_the_tiles_do_not() -> None:
    gate_up = cut("1.5B", "gate_up", 1)
    assert gate_up.persistent and gate_up.block_n == 4 and gate_up.num_tiles == 2240
    assert [gate_up.programs(n) for n in (108, 132, 148)] == [320, 374, 374]
    o = cut("1.5B", "o", 1)
    assert not o.persistent and o.programs(108) == o.programs(132) == o.num_tiles == 384


def test_a_program_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    gate_up = cut("1.5B", "gate_up", 1)
    monkeypatch.setattr(tiles, "RESIDENT", 2**20)
    assert gate_up.programs(MULTIPROCESSORS) == gate_up.num_tiles
    assert cut("1.5B", "gate_up", 1) == gate_up  # the same kernel
