"""The run of everything that needs a GPU: its parts in a dry run, its limits, what it keeps."""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import command, marked_tests
from bench.gpu.parts import Part, build_parts, chosen, parts
from bench.gpu.runner import ROOT, Identity, Runner, last_json

HERE = Identity("abc1234", "a device", False)


def part(code: str, tmp_path: Path, name: str = "sums", limit: float = 60) -> Part:
    """A part that runs some Python."""
    module = f"part_{name}"
    (tmp_path / f"{module}.py").write_text(code)
    return Part(name, module, ("--real",), ("--tiny",), limit)


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def runner(folder: Path, identity: Identity = HERE, budget: float = 60) -> Runner:
    folder.mkdir(exist_ok=True)
    return Runner(folder, identity, budget)


def test_a_part_says_what_it_found(importable: Path, tmp_path: Path) -> None:
    code = 'import sys\nprint(\'some text\')\nprint(\'{"answer": 4, "with": "%s"}\' % sys.argv[1])'
    found = runner(tmp_path / "out").run(part(code, importable))
    assert found["status"] == "passed"
    assert found["result"] == {"answer": 4, "with": "--real"}
    assert found["output"] == ["some text"]
    written = json.loads((tmp_path / "out" / "sums.json").read_text())
    assert written == found
    assert (written["commit"], written["device"]) == ("abc1234", "a device")


def test_a_part_that_fails_or_hangs_does_not_stop_the_rest(
    importable: Path, tmp_path: Path
) -> None:
    runs = runner(tmp_path / "out")
    failed = runs.run(part("raise SystemExit('no luck')", importable, "fails"))
    assert (failed["status"], failed["exit_status"]) == ("failed", 1)
    assert failed["output"] == ["no luck"]
    start = time.monotonic()
    hung = runs.run(part("import time\ntime.sleep(60)", importable, "hangs", limit=2))
    assert hung["status"] == "stopped after 2 s"
    assert time.monotonic() - start < 30
    assert runs.run(Part("none", "bench.nothing_here", (), (), 5))["status"] == "missing"


def test_nothing_is_started_when_the_budget_is_used_up(importable: Path, tmp_path: Path) -> None:
    found = runner(tmp_path / "out", budget=5).run(part("print(1)", importable))
    assert found["status"] == "no time"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_part_is_not_begun_without_the_time_it_needs(importable: Path, tmp_path: Path) -> None:
    long = replace(part("print('{}')", importable), least=61)
    runs = runner(tmp_path / "out", budget=60)
    assert runs.run(long)["status"] == "no time"
    assert runs.run(replace(long, least=10))["status"] == "passed"
    assert all(p.least <= p.limit for p in parts())


def test_bars_use_what_an_earlier_run_found(tmp_path: Path) -> None:
    runs = runner(tmp_path)
    control = {"part": "control", "status": "passed", "result": {"ops": []}}
    (tmp_path / "control.json").write_text(json.dumps(HERE.as_dict() | control))
    now = [{"part": "kernels", "status": "failed", "result": {"whole_model": {}}}]
    assert command.results_of(runs, now) == {"control": {"ops": []}, "kernels": {"whole_model": {}}}


def test_a_finished_part_is_not_run_again(importable: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    code = f"open({str(count)!r}, 'a').write('x')\nprint('{{}}')"
    sums = part(code, importable)

    def run(identity: Identity) -> Any:
        found = runner(tmp_path / "out", identity).run(sums)
        return found.get("resumed", False), count.read_text()

    assert run(HERE) == (False, "x")
    assert run(HERE) == (True, "x")
    assert run(Identity("def5678", "a device", False)) == (False, "xx")
    assert run(Identity("def5678", "another", False)) == (False, "xxx")
    assert run(Identity("def5678", "another", True)) == (False, "xxxx")
    for unknown in ("abc1234-dirty", None):
        before = run(Identity(unknown, "a device", False))[1]
        assert run(Identity(unknown, "a device", False)) == (False, before + "x")
    written = tmp_path / "out" / "sums.json"
    assert run(HERE)[0] is False
    written.write_text(written.read_text().replace("passed", "failed"))
    assert run(HERE)[0] is False
    written.write_text("{")
    assert run(HERE)[0] is False


def test_the_parts() -> None:
    names = [p.name for p in parts()]
    assert names[:2] == ["tests", "kernels"]
    assert names[-1] == "sanitize"
    assert len([p for p in parts() if not p.brief]) + 1 <= 8  # one file each, and the summary
    assert names.index("overlap") == len(names) - 2
    assert names[names.index("device_loop") + 1] == "batching"
    assert [p.name for p in chosen(["control", "kernels"])] == ["kernels", "control"]
    for p in (*parts(), *build_parts(False)):
        assert not p.missing
    assert [p.name for p in build_parts(False)] == ["doctor", "triton", "cuda"]
    assert "cuda" not in [p.name for p in build_parts(True)]


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten processes; about 20 seconds of one core
def test_dry_run_of_all_parts_in_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--dry-run", "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"RSD_COMMIT": "0123abc", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    check_dry_run(tmp_path, done.stdout)


def test_dry_run_of_all_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which has imported torch; that parts run in others is tested above."""
    monkeypatch.setenv("RSD_COMMIT", "0123abc")
    monkeypatch.setattr(Runner, "child", run_here)
    at_a_stop = signal.getsignal(signal.SIGTERM)
    code = command.main(["--dry-run", "--output", str(tmp_path)])
    signal.signal(signal.SIGTERM, at_a_stop)  # the part with the tests has its own
    said = capsys.readouterr().out
    assert code == 0, said[-4000:]
    check_dry_run(tmp_path, said)


ONE_AT_A_TIME = threading.Lock()


def run_here(runner: Runner, part: Part) -> dict[str, Any]:
    """What `python -m` would do, without the process and its limit."""
    said = io.StringIO()
    code: str | int | None = None
    module, *arguments = part.command(runner.identity.dry_run)[1:]
    with ONE_AT_A_TIME, pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            code = end.code
    lines = said.getvalue().splitlines()
    return {
        "part": part.name, "status": "failed" if code else "passed", "exit_status": code,
        "seconds": 1.0, "result": last_json(lines),
        "output": [line for line in lines if not line.startswith("{")],
    }  # fmt: skip


def check_dry_run(folder: Path, said: str) -> None:
    """What a dry run wrote and printed."""
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads(said.splitlines()[-1]) == summary
    assert summary["machine"]["commit"] == "0123abc"
    assert set(summary["machine"]) >= {"device", "driver", "versions", "cuda", "python"}
    assert list(summary["parts"]) == [p.name for p in parts()]
    present = {p.name for p in parts() if not p.missing}
    for name, found in summary["parts"].items():
        assert found["status"] == ("passed" if name in present else "missing")
    brief = {p.name for p in parts() if p.brief}
    assert {path.stem for path in folder.iterdir()} == (present - brief) | {"summary"}
    assert summary["parts"]["overlap"]["result"]["works"] is True
    assert set(summary["parts"]["verify"]["result"]["models"]["tiny"]["1"]["guesses"]) >= {"4"}
    assert "result" not in summary["parts"]["memory"]
    judged = {bar["name"]: bar for bar in summary["bars"]}
    assert judged["rollback, 16 slots"]["found"] > 0
    assert judged["host launches a step, device loop"]["met"] is not None
    assert "rollback, 16 slots" in said
    assert all(built["status"] == "passed" for built in summary["builds"].values())
    assert any("torch" in line for line in summary["builds"]["doctor"]["output"])
    assert len(said.splitlines()[-1]) < 12000


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--output", str(tmp_path / "out")]) == 2
    assert "there is no CUDA device here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_last_line_of_json() -> None:
    assert last_json(["{}", '{"a": 1}', "more", "{no json"]) == {"a": 1}
    assert last_json(["nothing"]) is None


def test_files_with_gpu_tests_are_found() -> None:
    found = marked_tests.marked_files(["tests/kernels"])
    names = {f"{path.parent.name}/{path.name}" for path in found}
    assert {"attention/test_kernel.py", "cuda/test_decode_projection.py"} <= names
    assert "aot/test_compile.py" not in names


def test_outcomes_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marked_tests, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n")
    (tmp_path / "test_some.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\ndef test_bad(): assert 1 == 2\n"
        "def test_none(): pytest.skip('no reason')\n"
    )
    (tmp_path / "test_broken.py").write_text("import pytest\npytest.mark.gpu\nimport nothing_here")
    (tmp_path / "test_slow.py").write_text(
        "import time, pytest\n@pytest.mark.gpu\ndef test_it(): time.sleep(60)\n"
    )
    some, broken, slow = (
        marked_tests.run_file(tmp_path / f"test_{name}.py", limit)
        for name, limit in (("some", 100), ("broken", 100), ("slow", 3))
    )
    assert (some.passed, some.skipped, len(some.failures)) == (1, 1, 1)
    assert some.failures[0].test == "test_some.py::test_bad"
    assert "assert 1 == 2" in some.failures[0].message
    assert "nothing_here" in broken.failures[0].message
    assert slow.failures[0].message.startswith("did not end in 3 s")
    found = marked_tests.summary([some, broken, slow])
    assert (found["passed"], found["skipped"], found["failed"]) == (1, 1, 3)


def test_a_file_that_takes_too_long_tells_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marked_tests, "ROOT", tmp_path)
    monkeypatch.setattr(marked_tests, "_GRACE", 40)
    (tmp_path / "test_long.py").write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_bad(): time.sleep(3); assert 1 == 2\ndef test_never(): pass\n"
    )
    (tmp_path / "test_stuck.py").write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\ndef test_stuck(): time.sleep(60)\n"
    )
    long = marked_tests.run_file(tmp_path / "test_long.py", 42)
    assert [failure.test for failure in long.failures] == ["test_long.py::test_bad", "test_long.py"]
    assert long.failures[1].message == "not all tests were started in 2 s"
    stuck = marked_tests.run_file(tmp_path / "test_stuck.py", 42)
    assert stuck.passed == 1 and stuck.failures[0].test == "test_stuck.py::test_stuck"
    assert "Timeout" in stuck.failures[0].message


def test_nothing_outlives_a_run_of_tests_that_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test starts a process of its own, as the checks of kernels do."""
    alive = tmp_path / "alive"
    child = f"echo 1 > {alive}; sleep 4; echo 2 > {alive}"
    monkeypatch.setattr(marked_tests, "ROOT", tmp_path)
    code, _ = marked_tests.run_group(["sh", "-c", f"({child}) & wait"], 2)
    assert code is None
    assert alive.read_text() == "1\n"
    time.sleep(3)
    assert alive.read_text() == "1\n"
