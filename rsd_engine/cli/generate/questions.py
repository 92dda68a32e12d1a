"""Lines of a JSONL file of questions: each stands alone, so one bad line stops nothing."""

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

_PROMPT_KEYS = ("prompt", "question", "messages", "prompt_token_ids")
# A seed or a mode may be a column of somebody's data; these would be meant for the engine.
_SAMPLING = {"temperature", "top_p", "top_k", "max_tokens", "max_new_tokens", "stop"}
_MAX_SEED = 2**53 - 1  # every JSON reader keeps it exactly


@dataclass(frozen=True)
class InputLine:
    """A line that is not blank, as it stands in the file."""

    number: int  # from 1
    raw: bytes

    @property
    def digest(self) -> str:
        """Tells whether a line has changed since it was answered."""
        return hashlib.blake2b(self.raw, digest_size=8).hexdigest()


@dataclass(frozen=True)
class Question:
    """What one line asks."""

    line: InputLine
    id: str | int | None
    given: Mapping[str, Any]  # the keys of _PROMPT_KEYS that the line has
    params: Mapping[str, Any] = field(default_factory=dict)


def read_lines(path: Path) -> list[InputLine]:
    """All lines of a file, or of stdin for `-`, blank ones left out.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    stripped = enumerate((line.strip() for line in data.split(b"\n")), start=1)
    return [InputLine(number, raw) for number, raw in stripped if raw]


def parse_question(line: InputLine) -> Question:
    """Raises ValueError if the line is not JSON, or does not say what is asked."""
    try:
        values = json.loads(line.raw.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"must be a JSON object, got {_short(values)}")
    if outside := sorted(_SAMPLING & set(values)):
        raise ValueError(f'sampling parameters {outside} belong into "params"')
    identity = values.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int | None):
        raise ValueError(f"id must be text or an integer, got {_short(identity)}")
    params = values.get("params", {})
    if not isinstance(params, dict):
        raise ValueError(f"params must be an object, got {_short(params)}")
    given = {key: values[key] for key in _PROMPT_KEYS if values.get(key) is not None}
    _check_prompt(given, sorted(values))
    return Question(line, identity, given, params)


def _check_prompt(given: Mapping[str, Any], keys: list[str]) -> None:
    main = [key for key in given if key != "question"] or list(given)
    if len(main) != 1 or ("messages" in given and "question" in given):
        raise ValueError(
            'needs one of "prompt", "question", "messages" or "prompt_token_ids" ("question" may '
            f"stand beside a prompt that is no conversation); got keys {keys}"
        )
    for key in ("prompt", "question"):
        if key in given and not isinstance(given[key], str):
            raise ValueError(f"{key} must be text, got {_short(given[key])}")
    ids = given.get("prompt_token_ids", [])
    if not isinstance(ids, list) or not all(type(item) is int for item in ids):
        raise ValueError(f"prompt_token_ids must be a list of integers, got {_short(ids)}")
    messages = given.get("messages", [{}])
    if (
        not isinstance(messages, list)
        or not messages
        or any(not isinstance(m, dict) for m in messages)
    ):
        raise ValueError(f"messages must be a list of objects, got {_short(messages)}")


def engine_prompt(given: Mapping[str, Any], *, chat: bool, system: str | None) -> Any:
    """What the engine takes: messages, or a prompt dict.

    A lone "prompt" or "question" goes through the chat template if `chat`. A prompt that brings
    its bare question is ready-made text, and so are token ids.
    """
    if "messages" in given:
        return given["messages"]
    alone = len(given) == 1 and "prompt_token_ids" not in given
    if not alone:
        return dict(given)
    text = next(iter(given.values()))
    if not chat:
        return {"prompt": text, "question": text}
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]


def line_seed(seed: int, line: int) -> int:
    """The seed of one line: the same in every run, and no line shares another's noise."""
    digest = hashlib.blake2b(f"{seed}:{line}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & _MAX_SEED


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
