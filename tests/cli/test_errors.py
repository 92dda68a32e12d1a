"""What becomes of errors: exit codes and lines."""

from __future__ import annotations

import io
import re

import pytest

from rsd_engine.cli.errors import UsageError, clean_errors, print_stderr


def outcome(error: BaseException, *, verbose: bool = False) -> int:
    with pytest.raises(SystemExit) as caught, clean_errors(verbose=verbose):
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
        (MemoryError(), 1, "error: out of memory\n"),
        (RecursionError("too deep"), 1, "error: too deep\n"),
        (OverflowError(), 1, "error: OverflowError\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: /x: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (ValueError("one:\n  two\n\n\tthree\n"), 1, "error: one: two three\n"),
        (ValueError("\x1b[2Jred\0"), 1, "error: \ufffd[2Jred\ufffd\n"),
        (ValueError("x" * 999), 1, f"error: {'x' * 999}\n"),
        (ValueError("x\n" * 999), 1, f"error: {'x ' * 150} ... (--verbose shows the rest)\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
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


def test_a_bug_is_one_line_that_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(KeyError("a\nbug")) == 1
    assert re.fullmatch(
        r"error: KeyError: 'a\\nbug' \(test_errors.py, line \d+; --verbose shows more\)\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("error", [KeyError("a bug"), ValueError("one\ntwo")])
def test_verbose_shows_the_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(error, verbose=True) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)")
    assert shown.splitlines()[-1].startswith("error: ")


def test_nobody_reads_what_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    print_stderr("nothing comes of it")
    assert outcome(ValueError("x")) == 1
