"""Executors over real models: see `checks.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rsd_engine import Engine
from rsd_engine.loop.executors.factory import EXECUTORS, resolve_executor
from tests.engine.executors.checks import (
    GRAPHS,
    GREEDY,
    SAMPLED,
    demo_engine,
    solve,
    steps_of,
    told,
)
from tests.tiny_models import TinyModels

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif("device-loop" in GRAPHS, reason="on a GPU the graph itself runs")
@pytest.mark.parametrize("slots", [1, 4])
def test_the_simulated_graph_decides_as_the_eager_executor(slots: int) -> None:
    for params in (GREEDY, SAMPLED):
        with demo_engine("eager", slots) as engine:
            wanted = [steps_of(request) for request in told(solve(engine, params))]
        with demo_engine("simulated-loop", slots) as engine:
            found = [steps_of(request) for request in told(solve(engine, params))]
        assert found == wanted
        assert any(rejected for steps, _ in wanted for _, _, rejected in steps)


def run_checks(*options: str, problems: int) -> None:
    """The checks in a process of its own."""
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "RSD_TEST_PROBLEMS": str(problems),
    }
    file = ROOT / "tests" / "engine" / "executors" / "checks.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file), *options],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run_checks(problems=24)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_check_with_the_simulated_graph() -> None:
    run_checks("-k", "not same_tokens", problems=12)


def test_which_executor_runs_where() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_executor("auto", cpu) == "eager"
    for name in EXECUTORS[1:]:
        assert resolve_executor(name, gpu) == name
    for name in ("host-graphs", "device-loop"):
        with pytest.raises(ValueError, match=f"executor='{name}' needs a CUDA device"):
            resolve_executor(name, cpu)


def test_an_unknown_executor_is_an_error(tiny: TinyModels) -> None:
    with pytest.raises(ValueError, match="executor must be one of auto, eager, host-graphs"):
        Engine(**tiny.sources(), executor="graphs")
