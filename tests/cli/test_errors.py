"""What becomes of errors: exit codes and lines."""

from __future__ import annotations

import pytest

from rsd_engine.cli.errors import UsageError, clean_errors


def outcome(error: BaseException) -> int:
    with pytest.raises(SystemExit) as caught, clean_errors():
        raise error
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("--x is odd"), 2, "error: --x is odd\n"),
        (ValueError("no such model"), 1, "error: no such model\n"),
        (FileNotFoundError("no demo"), 1, "error: no demo\n"),
        (ImportError("install gguf"), 1, "error: install gguf\n"),
        (MemoryError("the models need 9 GB"), 1, "error: the models need 9 GB\n"),
        (MemoryError(), 1, "error: MemoryError\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_users_see_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(error) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_cleaning_up_after_an_interrupt_may_fail(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, clean_errors():
        try:
            raise KeyboardInterrupt
        finally:
            raise kind("half-way state")
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"), clean_errors():
        raise RuntimeError("a bug")
