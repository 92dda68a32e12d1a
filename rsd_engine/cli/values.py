"""Parses and checks values as people write them in a shell or a TOML file."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from rsd_engine.cli.errors import UsageError

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_MAX_TEXT = 64 << 20  # bytes of a file of settings; a device may be endless
_ROLES = ("draft", "target", "prm")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}

Check = Callable[[str, Any], Any]
"""(name, value) -> the value to use; raises UsageError naming both."""


def html_file(name: str, path: Path) -> None:
    """Raises UsageError unless a page can be written there: .html, in a folder that exists."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{name} must end in .html, got {path}")
    if not path.parent.is_dir():
        raise UsageError(f"{name} must be in a folder that exists, got {path}")


def size(name: str, value: Any) -> int:
    """A size in bytes: a number, or text such as `2GiB` or `500 MB`."""
    given = value if isinstance(value, str) else reprlib.repr(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", given)
    if match is None or isinstance(value, bool) or match[2].lower() not in _UNITS:
        raise UsageError(
            f"{name} must be a size such as 2GiB, 500MB or a number of bytes, got "
            f"{reprlib.repr(value)}"
        )
    found = Decimal(match[1]) * _UNITS[match[2].lower()]
    if found >= 2**63:
        raise UsageError(f"{name} must be less than 8 EiB, got {reprlib.repr(value)}")
    return int(found)


def unescape(name: str, value: str) -> str:
    r"""The text with its escapes `\n`, `\t`, `\r` and `\\` replaced."""

    def replace(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise UsageError(
                rf"{name}={value!r}: unknown escape {match[0]!r}; allowed: \n, \t, \r and \\"
            )
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.?)", replace, value, flags=re.DOTALL)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be text, got {value!r}")
    return value


def integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} must be an integer, got {value!r}")
    return value


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number, got {value!r}")
    try:
        float(value)
    except OverflowError:
        raise UsageError(f"{name} must fit a float, got {reprlib.repr(value)}") from None
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {value!r}")
    return value


def texts(name: str, value: Any) -> list[str]:
    """One text, or a list of texts."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise UsageError(f"{name} must be text or a list of texts, got {value!r}")
    return listed


def json_object(name: str, value: Any) -> dict[str, Any]:
    """A JSON object as text, or a TOML table."""
    found = _from_json(name, value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise UsageError(f'{name} must be a JSON object such as {{"a": 1}}, got {value!r}')
    return found


def by_role(name: str, value: Any) -> str | dict[str, str]:
    """One word for all models, or one for each: `draft=int8,target=int4`, or a TOML table."""
    if isinstance(value, dict):
        return {role: text(f"{name}.{role}", word) for role, word in value.items()}
    pairs = [part.partition("=") for part in text(name, value).split(",")]
    if len(pairs) == 1 and not pairs[0][1]:
        return text(name, value)
    found = {role.strip(): word.strip() for role, _, word in pairs}
    if not all(equals for _, equals, _ in pairs) or len(found) < len(pairs):
        raise UsageError(f"{name} must be a word or ROLE=WORD,ROLE=WORD, got {value!r}")
    return found


def quantization(name: str, value: Any) -> str | dict[str, str]:
    """What plain weights are rounded to as an engine loads them, as in `by_role`."""
    from rsd_engine.engine.model_sources import QUANTIZATION_WORDS

    return word_by_role(name, value, QUANTIZATION_WORDS)


def word_by_role(name: str, value: Any, allowed: Collection[str]) -> str | dict[str, str]:
    """As `by_role`, of words and roles that there are."""
    found = by_role(name, value)
    for role, word in found.items() if isinstance(found, dict) else [("", found)]:
        if role and role not in _ROLES:
            raise UsageError(f"{name} names {role!r}; the roles are {', '.join(_ROLES)}")
        if word not in allowed:
            of_role = f" of {role}" if role else ""
            raise UsageError(
                f"{name}{of_role} must be one of {', '.join(allowed)}, got {reprlib.repr(word)}"
            )
    return found


def json_file(name: str, path: str | Path) -> Any:
    """What a JSON file holds."""
    return _from_json(f"{name} {path}", text_file(name, path))


def text_file(name: str, path: str | Path) -> str:
    """What a text file holds."""
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(_MAX_TEXT + 1)
        if len(data) > _MAX_TEXT:
            raise UsageError(f"{name} {path} is larger than {_MAX_TEXT >> 20} MiB; is it the one?")
        return data.decode("utf-8")
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user who does not exist
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {name} {path}: {reason}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} {path} is not UTF-8 text: {error}") from None


def _from_json(name: str, given: str) -> Any:
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from None


def policy(name: str, value: Any) -> Any:
    """A policy, written as `threshold:0.7` and the like."""
    from rsd_engine.steps.policies import parse_policy

    try:
        return parse_policy(text(name, value))
    except ValueError as error:
        raise UsageError(str(error)) from None


def scorer(name: str, value: Any) -> Any:
    """A scorer, written as `judge`, `probe:FILE` and the like."""
    from rsd_engine.steps.scorers import parse_scorer

    try:
        return parse_scorer(text(name, value))
    except ValueError as error:
        raise UsageError(str(error)) from None


def prm_format(name: str, value: Any) -> Any:
    """A family's name, or a format of one's own: a JSON object as text, or a TOML table."""
    is_table = not isinstance(value, str) or value.lstrip().startswith("{")
    return json_object(name, value) if is_table else value


def checked(table: str, values: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """The values of a config table, checked; UsageError if a key or value is not allowed."""
    unknown = sorted(set(values) - set(checks))
    if unknown:
        raise UsageError(f"unknown keys {unknown} in [{table}]; allowed: {sorted(checks)}")
    return {name: checks[name](f"{table}.{name}", value) for name, value in values.items()}
