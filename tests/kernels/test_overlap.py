"""Which kernels of a forward start early, and what they do before they wait."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.launch import OVERLAP_ROWS, can_overlap, overlapping
from rsd_kernels.linear import tiles
from tests.kernels.harness.child import run_checks

CHECKS = "kernels/overlap_checks.py"


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that the current device is one."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("RSD_OVERLAP_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.mark.usefixtures("hopper")
def test_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not overlapping(1)
    for value, wanted in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("RSD_OVERLAP_KERNELS", value)
        assert overlapping(1) is wanted


@pytest.mark.usefixtures("hopper")
def test_in_passes_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSD_OVERLAP_KERNELS", "1")
    assert overlapping(OVERLAP_ROWS) and not overlapping(OVERLAP_ROWS + 1)


def test_as_many_rows_as_a_tile_has() -> None:
    """In wider passes cuBLAS computes the products."""
    assert tiles.MAX_ROWS == OVERLAP_ROWS


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("capability", "wanted"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((12, 0), True)]
)
def test_devices(
    capability: tuple[int, int], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert can_overlap() is wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not can_overlap()


@pytest.mark.usefixtures("hopper")
def test_not_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSD_OVERLAP_KERNELS", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not overlapping(1)


def test_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_checks(CHECKS, interpreted=True)


@pytest.mark.gpu
def test_on_the_device() -> None:
    run_checks(CHECKS, interpreted=False)
