"""Files with tests for a GPU: how they are run, and what stops them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.gpu import marked_tests


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time of a run without tests is that of plugins."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p pytest_timeout")


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
        "def test_bad(): time.sleep(1.5); assert 1 == 2\ndef test_never(): pass\n"
    )
    (tmp_path / "test_stuck.py").write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\ndef test_stuck(): time.sleep(60)\n"
    )
    long = marked_tests.run_file(tmp_path / "test_long.py", 41)
    assert [failure.test for failure in long.failures] == ["test_long.py::test_bad", "test_long.py"]
    assert long.failures[1].message == "not all tests were started in 1 s"
    stuck = marked_tests.run_file(tmp_path / "test_stuck.py", 41)
    assert stuck.passed == 1 and stuck.failures[0].test == "test_stuck.py::test_stuck"
    assert "Timeout" in stuck.failures[0].message


def test_nothing_outlives_a_run_of_tests_that_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test starts a process of its own, as the checks of kernels do."""
    alive = tmp_path / "alive"
    child = f"echo 1 > {alive}; sleep 2; echo 2 > {alive}"
    monkeypatch.setattr(marked_tests, "ROOT", tmp_path)
    code, _ = marked_tests.run_group(["sh", "-c", f"({child}) & wait"], 1)
    assert code is None
    assert alive.read_text() == "1\n"
    time.sleep(1.5)
    assert alive.read_text() == "1\n"
