"""Reads a JSONL file of questions; each line is checked by itself, so a bad one stops nothing."""

from __future__ import annotations

import codecs
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsd_engine.cli.errors import UsageError
from rsd_engine.engine.chat.questions import asked, brief

# Fields that are surely meant for the engine, unlike "seed" or "mode", which data may have.
_SAMPLING = {"temperature", "top_p", "top_k", "max_tokens", "max_new_tokens", "stop"}


@dataclass(frozen=True)
class InputLine:
    """A line of the file that is not blank."""

    number: int  # from 1
    raw: bytes

    @property
    def digest(self) -> str:
        """Differs if the line has changed since it was answered."""
        return hashlib.blake2b(self.raw, digest_size=8).hexdigest()


@dataclass(frozen=True)
class Question:
    """A line, parsed."""

    line: InputLine
    id: str | int | None
    given: Mapping[str, Any]  # those of ASKING that the line has
    params: Mapping[str, Any] = field(default_factory=dict)


def read_lines(path: Path) -> list[InputLine]:
    """All lines of a file, or of stdin for `-`, but blank ones.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read()
        elif path.is_char_device() or path.is_block_device():
            raise UsageError(f"cannot read {path}: it is a device; give a file, or - for stdin")
        else:
            data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    stripped = enumerate((line.strip() for line in data.split(b"\n")), start=1)
    return [InputLine(number, raw) for number, raw in stripped if raw]


def parse_question(line: InputLine) -> Question:
    """Parses a line; ValueError if it is not a JSON object, or has no prompt or a wrong value."""
    try:
        values = json.loads(line.raw.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"must be a JSON object, got {brief(values)}")
    if outside := sorted(_SAMPLING & set(values)):
        raise ValueError(f'sampling parameters {outside} must be inside "params"')
    identity = values.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int | None):
        raise ValueError(f"id must be text or an integer, got {brief(identity)}")
    params = values.get("params", {})
    if not isinstance(params, dict):
        raise ValueError(f"params must be an object, got {brief(params)}")
    return Question(line, identity, asked(values), params)
