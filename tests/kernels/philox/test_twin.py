"""Philox4x32-10: the authors' known-answer vectors, and every part of the key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rsd_kernels.philox.twin import DrawKey, philox, uniform
from rsd_kernels.state.enums import Purpose

ONES = 0xFFFFFFFF


def test_known_answers() -> None:
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = philox((ONES, ONES, ONES, ONES), (ONES, ONES))
    assert ones == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
    assert pi == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_every_part_of_the_key_counts() -> None:
    base = DrawKey(5, 0, 3, 40, Purpose.DRAFT_TOKEN)
    others: list[dict[str, Any]] = [
        {"num_steps": 4}, {"position": 41}, {"purpose": Purpose.ACCEPT}, {"seed": 6}, {"sample": 1},
        {"purpose": Purpose.TARGET_TOKEN}, {"seed": 5 + 2**32},
    ]  # fmt: skip
    keys = [base, *(replace(base, **change) for change in others)]
    words = {word for key in keys for block in range(5) for word in key.words(block)}
    assert len(words) == len(keys) * 5 * 4


def test_blocks_together_are_as_each_alone() -> None:
    key = DrawKey(-3, 2, 1, 9, Purpose.TARGET_TOKEN)
    blocks = [0, 5, 7, 2**24 - 1]
    together = np.stack(key.words(np.array(blocks, np.uint64)), 1)
    assert together.tolist() == [list(key.words(block)) for block in blocks]


def test_numbers_are_uniform_and_exact_in_float32() -> None:
    numbers = np.array(
        [
            uniform(DrawKey(s, 0, n, p, Purpose.ACCEPT))
            for s in range(10) for n in range(10) for p in range(40)
        ]
    )  # fmt: skip
    assert numbers.min() >= 0 and numbers.max() < 1
    assert (numbers.astype(np.float32) == numbers).all()
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert float(((counts - 200) ** 2 / 200).sum()) < 43.8  # 19 degrees of freedom, p = 0.001
