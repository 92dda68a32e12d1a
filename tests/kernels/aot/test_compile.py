"""Ahead-of-time compilation of the Triton kernels: a few always, all of them where asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.kernels.harness.child import ROOT, run_checks

pytest.importorskip("triton")


FOLDER = "kernels/aot"


@pytest.mark.parametrize("name", [f"{FOLDER}/launch_checks.py", f"{FOLDER}/loop_launch_checks.py"])
def test_without_a_device(name: str) -> None:
    """A few kernels."""
    run_checks(name, interpreted=False)


def resources(*arguments: str) -> dict[str, object]:
    """The JSON line of `python -m bench.kernel_resources`, which must end well."""
    paths = os.pathsep.join([str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.kernel_resources", *arguments],
        cwd=ROOT,
        env=variables | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_kernel_that_ships() -> None:
    found = resources()
    assert found["archs"] == ["sm_80", "sm_90", "sm_100"]
    assert found["failed"] == 0
    assert found["decode_spills"] == 0
    assert isinstance(found["shape_names"], list)
    assert {"Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B", "Llama-3.2-1B"} < set(
        found["shape_names"]
    )
