"""Races of the Triton kernels, found in the interpreter."""

from __future__ import annotations

import pytest

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")


@pytest.mark.parametrize("name", ["race_checks.py", "race_rule_checks.py"])
def test_in_the_interpreter(name: str) -> None:
    run_checks(f"kernels/interpreter/{name}", interpreted=True)
