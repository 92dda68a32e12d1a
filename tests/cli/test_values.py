"""Sizes, escapes and checked tables."""

from __future__ import annotations

import pytest

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.values import by_role, checked, flag, integer, number, size, texts, unescape


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [
        ("2GiB", 2**31),
        ("1.5 KiB", 1536),
        ("500MB", 500_000_000),
        ("64kb", 64_000),
        ("4096", 4096),
        (4096, 4096),
        ("7B", 7),
    ],
)
def test_size(written: str | int, bytes_: int) -> None:
    assert size("memory", written) == bytes_


@pytest.mark.parametrize("written", ["2XB", "GiB", "-1", "", "1e9", True, None, [1]])
def test_bad_size_is_named(written: object) -> None:
    with pytest.raises(UsageError, match="memory must be a size such as 2GiB"):
        size("memory", written)


def test_unescape() -> None:
    assert unescape("stop", r"a\n\tb\\n") == "a\n\tb\\n"
    assert unescape("stop", "größer\n") == "größer\n"


@pytest.mark.parametrize("written", [r"\q", "end\\"])
def test_unknown_escape(written: str) -> None:
    with pytest.raises(UsageError, match="unknown escape"):
        unescape("stop", written)


@pytest.mark.parametrize(
    ("check", "value"),
    [(integer, True), (integer, 1.5), (number, "1"), (number, False), (flag, 1), (texts, [1])],
)
def test_types_are_checked(check, value: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="the name must be .*, got"):
        check("the name", value)


def test_unknown_keys_name_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown keys \['c'\] in \[t\]; allowed: \['a', 'b'\]"):
        checked("t", {"a": 1, "c": 2}, {"a": integer, "b": integer})
    assert checked("t", {"a": 1}, {"a": integer, "b": integer}) == {"a": 1}


def test_by_role() -> None:
    assert by_role("q", "int8") == "int8"
    assert by_role("q", "draft=int8, target=int4") == {"draft": "int8", "target": "int4"}
    assert by_role("q", {"draft": "int8"}) == {"draft": "int8"}


@pytest.mark.parametrize("value", ["int8,int4", "draft=int8,int4", "draft=int8,draft=int4"])
def test_roles_that_are_not_told_apart(value: str) -> None:
    with pytest.raises(UsageError, match="the name must be a word or ROLE=WORD,ROLE=WORD, got"):
        by_role("the name", value)


def test_a_word_of_a_role_is_text() -> None:
    with pytest.raises(UsageError, match="the name.draft must be text, got 8"):
        by_role("the name", {"draft": 8})
