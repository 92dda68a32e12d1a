"""The measured rates are plausible figures of this machine."""

from __future__ import annotations

import torch

from rsd_engine.roofline.measured import product_rate, read_bandwidth


def test_reads_at_a_rate_that_memory_has() -> None:
    found = read_bandwidth(torch.device("cpu"), num_bytes=2**24, runs=3)
    assert 1e8 < found < 1e13


def test_multiplies_at_a_rate_that_a_processor_has() -> None:
    found = product_rate(torch.device("cpu"), width=256, seconds=0.01)
    assert 1e8 < found < 1e14
