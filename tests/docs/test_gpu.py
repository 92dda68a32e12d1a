"""What to expect of a GPU is what the model says."""

from __future__ import annotations

import json
import shlex

import pytest

from rsd_kernels.launch import available
from tests.docs.conftest import Shell
from tests.docs.documents import document

GPU = document("docs/gpu.md")
pytestmark = pytest.mark.skipif(not available(), reason="Triton is not installed")


def test_the_launches_of_a_tick(shell: Shell) -> None:
    command, _, block = GPU.text.partition("$ rsd plan --launches ")[2].partition("\n")
    shown = block.partition("\n```")[0]
    assert shell.rsd("plan", "--launches", *shlex.split(command)).strip() == shown.strip()


def test_the_times_of_a_token(shell: Shell) -> None:
    rows = GPU.table_after("## What to expect")
    assert len(rows) == 6
    for gpu, model, *cells in rows:
        args = ("plan", "--launches", f"--draft={model.lower()}", f"--gpu={gpu.lower()}", "--json")
        found = json.loads(shell.rsd(*args))
        plain, early = found["draft"]["ticks"][:2]
        assert (plain["sequences"], plain["early"], early["early"]) == (1, False, True)
        least = plain["forward"]["num_bytes"] / found["gpu"]["bandwidth"]
        forwards = [
            f"{1e6 * tick['forward']['seconds']:.0f} ({1e2 * tick['forward']['share']:.0f} %)"
            for tick in (plain, early)
        ]
        control = f"{1e6 * plain['control']['seconds']:.0f}"
        assert cells == [f"{1e6 * least:.0f}", *forwards, control]
