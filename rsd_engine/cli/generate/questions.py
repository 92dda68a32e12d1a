"""Reads a JSONL file of questions; each line is checked by itself, so a bad one stops nothing."""

from __future__ import annotations

import codecs
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rsd_engine.cli.errors import UsageError

_MAIN_KEYS = ("prompt", "messages", "prompt_token_ids")
_PROMPT_KEYS = (*_MAIN_KEYS, "question", "tools")
# Fields that are surely meant for the engine, unlike "seed" or "mode", which data may have.
_SAMPLING = {"temperature", "top_p", "top_k", "max_tokens", "max_new_tokens", "stop"}
_MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps exactly


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
    given: Mapping[str, Any]  # those of _PROMPT_KEYS that the line has
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatSettings:
    """How questions become what the engine takes."""

    chat: bool | None = None  # None: if there is a template
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # more arguments of Engine.chat

    def of(self, tokenizer: Any) -> ChatSettings:
        """The same, with `chat` decided for the tokenizer of draft and target."""
        if self.chat is not None:
            return self
        has_template = "chat_template" in self.options or getattr(tokenizer, "chat_template", None)
        return replace(self, chat=bool(has_template))

    def engine_prompt(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The prompt of a question, as the engine takes it.

        With `chat`, a "prompt" or "question" by itself becomes a conversation. A prompt with a
        question beside it is taken as it is, and so are token ids.
        """
        tools = {"tools": given["tools"]} if "tools" in given else {}
        main = {key: value for key, value in given.items() if key != "tools"}
        if "messages" in main:
            return {**self.options, **tools, **main}
        if len(main) > 1 or "prompt_token_ids" in main:
            return main
        text = next(iter(main.values()))
        if not self.chat:
            return {"prompt": text, "question": text}
        head = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*head, {"role": "user", "content": text}]
        return {**self.options, **tools, "messages": messages}


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
        raise ValueError(f"must be a JSON object, got {_short(values)}")
    if outside := sorted(_SAMPLING & set(values)):
        raise ValueError(f'sampling parameters {outside} must be inside "params"')
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
    main = [key for key in given if key in _MAIN_KEYS] or [key for key in given if key != "tools"]
    if len(main) != 1:
        raise ValueError(
            'needs one of "prompt", "question", "messages" or "prompt_token_ids" ("question" may '
            f"also accompany the others), got keys {keys}"
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


def line_seed(seed: int, line: int) -> int:
    """The seed of one line: the same in every run, and different for every line."""
    digest = hashlib.blake2b(f"{seed}:{line}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & _MAX_SEED


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
