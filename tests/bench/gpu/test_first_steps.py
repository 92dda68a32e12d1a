"""What the parts of first contact make of what they see."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import counters, launch_profile
from bench.gpu.executors import Difference, first_difference
from bench.gpu.launch_profile import Run, runs_of
from rsd_engine.roofline.gpus import find_gpu
from rsd_engine.roofline.launch_times import Load
from rsd_engine.roofline.sources import find_config
from rsd_engine.roofline.tick_times import tick_time
from rsd_engine.roofline.ticks import decode_tick


@dataclass(frozen=True)
class Rejected:
    token_ids: tuple[int, ...]
    reward: float


@dataclass(frozen=True)
class Step:
    token_ids: tuple[int, ...]
    source: str = "draft"
    reward: float | None = 0.5
    rejected: Rejected | None = None


@dataclass(frozen=True)
class Sample:
    steps: tuple[Step, ...]
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Output:
    outputs: tuple[Sample, ...]


STEPS = (
    Step((1, 2, 3)),
    Step((4, 5), "target", None, Rejected((6, 7), 0.25)),
    Step((8,), reward=float("nan")),
)


def solved(*steps: Step, finish: str = "stop") -> Any:
    same = Output((Sample(STEPS),))
    return {"greedy": [same], "sampled": [same, Output((Sample(steps, finish),))]}


def changed(at: int, **changes: Any) -> Any:
    steps = list(STEPS)
    steps[at] = replace(steps[at], **changes)
    return solved(*steps)


@pytest.mark.parametrize(
    ("found", "step", "what", "expected", "value"),
    [
        (changed(0, token_ids=(1, 9, 3)), 0, "token 1 of the step", 2, 9),
        (changed(0, token_ids=(1, 2)), 0, "token 2 of the step", 3, 0.5),
        (changed(0, reward=0.5000001), 0, "reward", 0.5, 0.5000001),
        (changed(1, source="draft"), 1, "writer", "target", "draft"),
        (changed(1, rejected=Rejected((6, 8), 0.25)), 1, "token 1 of the rejected step", 7, 8),
        (changed(1, rejected=Rejected((6, 7), 0.5)), 1, "reward of the rejected step", 0.25, 0.5),
        (solved(*STEPS[:2]), 2, "writer", "draft", "stop"),
        (solved(*STEPS, STEPS[0]), -1, "finish reason", "stop", "draft"),
        (solved(*STEPS, finish="length"), -1, "finish reason", "stop", "length"),
    ],
)
def test_the_first_difference(found: Any, step: int, what: str, expected: Any, value: Any) -> None:
    difference = first_difference(solved(*STEPS), found)
    assert difference == Difference("sampled", 1, step, what, expected, value)


def test_no_difference() -> None:
    assert first_difference(solved(*STEPS), solved(*STEPS)) is None
    assert first_difference(solved(*STEPS), changed(0, reward=0.7), rewards=False) is None


def event(name: str, start: float, us: float, cat: str = "kernel") -> dict[str, Any]:
    return {"name": name, "ts": start, "dur": us, "cat": cat, "ph": "X"}


def test_kernels_and_the_gaps_before_them() -> None:
    trace = [
        event("second", 107.5, 2.0),
        {"name": "flow", "cat": "ac2g", "ts": 100},
        event("host", 0.0, 500.0, "cpu_op"),
        event("first", 100.0, 5.0),
        event("early", 108.5, 4.0),
        event("first", 113.0, 3.0),
        event("copy", 120.0, 1.0, "gpu_memcpy"),
    ]
    runs = runs_of(trace, launch_profile._ON_DEVICE)
    assert runs == [
        Run("first", 5.0, 0.0), Run("second", 2.0, 2.5), Run("early", 4.0, -1.0),
        Run("first", 3.0, 0.5), Run("copy", 1.0, 4.0),
    ]  # fmt: skip
    entries = launch_profile.by_kernel(runs)
    assert entries[0] == {"kernel": "first", "runs": 2, "us": 4.0, "gap_us": 0.25, "total_us": 8.5}
    assert sum(entry["total_us"] for entry in entries) == 21.0  # from the first begin to the end
    cells = launch_profile.table(entries).splitlines()[2].split()
    assert cells == ["first", "2", "4.00", "0.25", "8.5"]


def test_what_is_expected_of_a_profiled_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """The kernels of a forward by their names, to compare with what the profiler shows."""
    pytest.importorskip("triton")
    gpu = find_gpu("h100")
    found = launch_profile.expected_us("Qwen2.5-0.5B", 1000, gpu, early=True)
    config = find_config("qwen2.5-0.5b")
    times = tick_time(decode_tick(config, config.dtype), Load(1, 1000), gpu, early=True)
    assert sum(found.values()) == pytest.approx(1e6 * times.forward_seconds)
    assert set(found) == {kernel.name for kernel in times.forward}
    assert "Qwen2.5-0.5B, early: expected, " in capsys.readouterr().out


NCU = """==PROF== Connected to process 7 (/usr/bin/python3.12)
==PROF== Disconnected
"ID","Process Name","Kernel Name","dram__bytes_read.sum","gpu__time_duration.sum"
"","","","Mbyte","us"
"0","python3","_linear_kernel","4.72","2.5"
"1","python3","combine(float *, int)","0.01","1.25"
"""


def test_counters_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does as `ncu` does stands for it."""
    ncu = tmp_path / "ncu"
    ncu.write_text(
        f"#!/bin/sh\nwhile [ $1 != --log-file ]; do shift; done\ncat > $2 <<'END'\n{NCU}END\n"
    )
    ncu.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert counters.find_ncu() == str(ncu)
    rows = counters.count(str(ncu), tmp_path)
    assert rows[1] == {
        "Kernel Name": "combine(float *, int)",
        "dram__bytes_read.sum": "0.01 Mbyte",
        "gpu__time_duration.sum": "1.25 us",
    }
    assert counters.table(rows).splitlines()[2].split()[:5] == [
        "_linear_kernel",
        "2.5",
        "us",
        "4.72",
        "Mbyte",
    ]
    ncu.write_text("#!/bin/sh\necho no permission\nexit 4\n")
    with pytest.raises(RuntimeError, match="ncu ended with 4:\nno permission"):
        counters.count(str(ncu), tmp_path)


def test_a_profiler_that_records_nothing_is_told(tmp_path: Path) -> None:
    import torch

    with pytest.raises(RuntimeError, match="has recorded no kernel"):
        launch_profile.profiled(lambda: None, torch.device("cpu"), tmp_path / "trace.json")
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())
