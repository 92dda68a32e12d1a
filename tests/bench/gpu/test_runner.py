"""Parts in processes of their own: what they find, what stops them, and what is kept."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import runner as running
from bench.gpu.kernel_cache import compiled_kernels
from bench.gpu.parts import Part
from bench.gpu.runner import Identity, Runner, last_json

HERE = Identity("abc1234", "a device", False)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules parts can run."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def part(code: str, modules: Path, name: str = "sums", limit: float = 60) -> Part:
    """A part that runs some Python."""
    module = f"part_{name}"
    (modules / f"{module}.py").write_text(code)
    return Part(name, module, ("--real", "OUTPUT"), ("--tiny",), limit)


def runner(folder: Path, identity: Identity = HERE, budget: float = 60, **options: Any) -> Runner:
    folder.mkdir(exist_ok=True)
    return Runner(folder, identity, budget, **options)


def test_a_part_says_what_it_found(modules: Path, tmp_path: Path) -> None:
    code = (
        "import json, os, sys\n"
        "print('some text')\n"
        "ahead = 'bench.kernels.model_ops' in sys.modules\n"
        "print(json.dumps({'given': sys.argv[1:], 'ahead': ahead, 'name': __name__,"
        " 'early': os.environ.get('RSD_OVERLAP_KERNELS')}))"
    )
    out = tmp_path / "out"
    found = runner(out).run(part(code, modules))
    assert found["status"] == "passed"
    assert found["result"] == {
        "given": ["--real", str(out)], "ahead": True, "name": "__main__", "early": None
    }  # fmt: skip
    assert found["output"] == ["some text"] and not found["early"]
    assert json.loads((out / "sums.json").read_text()) == found
    assert (out / "sums.log").read_text().startswith("some text\n{")
    assert (found["commit"], found["device"]) == ("abc1234", "a device")
    early = replace(part(code, modules), name="again", may_be_early=True).early()
    found = runner(out).run(early)
    assert found["result"]["early"] == "1" and found["early"]


def test_a_part_that_fails_or_hangs_does_not_stop_the_rest(modules: Path, tmp_path: Path) -> None:
    runs = runner(tmp_path / "out")
    failed = runs.run(part("raise SystemExit('no luck')", modules, "fails"))
    assert (failed["status"], failed["exit_status"]) == ("failed", 1)
    assert failed["output"] == ["no luck"]
    start = time.monotonic()
    hangs = part("import time\ndef stuck(): time.sleep(60)\nstuck()", modules, "hangs", limit=3)
    hung = runs.run(hangs)
    assert hung["status"] == "stopped after 3 s" and hung["exit_status"] is None
    assert time.monotonic() - start < 30
    assert any("in stuck" in line for line in hung["output"]), "it did not say where it hung"
    crashed = runs.run(part("import os\nos.abort()", modules, "crashes"))
    assert (crashed["status"], crashed["exit_status"]) == ("failed", -6)
    assert any("Fatal Python error: Aborted" in line for line in crashed["output"])
    assert runs.run(Part("none", "bench.nothing_here", (), (), 5))["status"] == "missing"


def test_what_a_part_has_started_ends_with_it(modules: Path, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"echo 1 > {alive}; sleep 4; echo 2 > {alive}"
    code = f"import subprocess\nsubprocess.run(['sh', '-c', {child!r}])"
    found = runner(tmp_path / "out").run(part(code, modules, "starts", limit=2))
    assert found["status"] == "stopped after 2 s"
    time.sleep(2.5)
    assert alive.read_text() == "1\n"


def test_nothing_is_started_when_the_budget_is_used_up(modules: Path, tmp_path: Path) -> None:
    found = runner(tmp_path / "out", budget=4).run(part("print(1)", modules))
    assert found["status"] == "no time"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_finished_part_is_not_run_again(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def run_module(module: str, arguments: object, log: Path, *_: object) -> int:
        runs.append(module)
        log.write_text("{}\n")
        return 0

    monkeypatch.setattr(running, "run_module", run_module)
    sums = part("", modules)

    def run(identity: Identity, folder: str = "out", **options: Any) -> Any:
        found = runner(tmp_path / folder, identity, **options).run(sums)
        return found.get("resumed", False), "x" * len(runs)

    assert run(HERE) == (False, "x")
    assert run(HERE) == (True, "x")
    assert run(HERE, "other", earlier=[tmp_path / "out"]) == (True, "x")
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


def test_kernels_that_were_compiled_after_all(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    for folder, file in (("A", "old.cubin"), ("B", "new.cubin"), ("B", "new.json")):
        (cache / folder).mkdir(parents=True, exist_ok=True)
        if folder == "A":
            (cache / folder / file).touch()
    assert compiled_kernels() == {"A/old"}
    code = f"from pathlib import Path\nPath({str(cache / 'B' / 'new.cubin')!r}).touch()"
    assert runner(tmp_path / "out").run(part(code, modules))["compiled"] == ["B/new"]


def test_last_line_of_json() -> None:
    assert last_json(["{}", '{"a": 1}', "more", "{no json"]) == {"a": 1}
    assert last_json(["nothing"]) is None
    assert running.read_json(Path("nothing/here.json")) == {}
