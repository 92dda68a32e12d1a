"""The measured read bandwidth is a plausible figure of this machine."""

from __future__ import annotations

import torch

from rsd_engine.roofline.measured import read_bandwidth


def test_reads_at_a_rate_that_memory_has() -> None:
    found = read_bandwidth(torch.device("cpu"), num_bytes=2**24, runs=3)
    assert 1e8 < found < 1e13
