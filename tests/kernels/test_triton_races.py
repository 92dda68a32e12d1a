"""Races of the Triton kernels, found in the interpreter."""

from __future__ import annotations

import pytest

from tests.kernels.triton_child import run_checks

pytest.importorskip("triton")


@pytest.mark.parametrize("name", ["triton_race_checks.py", "triton_race_rule_checks.py"])
def test_in_the_interpreter(name: str) -> None:
    run_checks(name, interpreted=True)
