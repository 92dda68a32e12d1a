"""What a record of a data file asks, and how that becomes a prompt of the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_MAIN_KEYS = ("prompt", "messages", "prompt_token_ids")
ASKING = (*_MAIN_KEYS, "question", "tools")
_MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps exactly
# Arguments of `Engine` that no answer depends on: a run may be resumed with others.
_FREE = (
    "device", "max_num_seqs", "kv_cache_memory_bytes", "gpu_memory_utilization", "executor",
)  # fmt: skip


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


def asked(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a record asks: those of its fields that are in `ASKING`.

    Raises:
        ValueError: it has no prompt, or two, or one of a wrong type.
    """
    given = {key: values[key] for key in ASKING if values.get(key) is not None}
    main = [key for key in given if key in _MAIN_KEYS] or [key for key in given if key != "tools"]
    if len(main) != 1:
        raise ValueError(
            'needs one of "prompt", "question", "messages" or "prompt_token_ids" ("question" may '
            f"also accompany the others), got keys {sorted(values)}"
        )
    for key in ("prompt", "question"):
        if key in given and not isinstance(given[key], str):
            raise ValueError(f"{key} must be text, got {brief(given[key])}")
    ids = given.get("prompt_token_ids", [])
    if not isinstance(ids, list) or not all(type(item) is int for item in ids):
        raise ValueError(f"prompt_token_ids must be a list of integers, got {brief(ids)}")
    messages = given.get("messages", [{}])
    if (
        not isinstance(messages, list)
        or not messages
        or any(not isinstance(m, dict) for m in messages)
    ):
        raise ValueError(f"messages must be a list of objects, got {brief(messages)}")
    return given


def question_seed(seed: int, key: int | str) -> int:
    """The seed of one record, by its number or id: the same in every run, another for each."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & _MAX_SEED


def settings_text(engine: Mapping[str, Any], sampling: Any, chat: ChatSettings) -> str:
    """All settings that decide answers, as JSON: those of a run and of its resumption are equal."""
    decisive = {
        "engine": {name: value for name, value in engine.items() if name not in _FREE},
        "sampling": sampling,
        "chat": chat.chat,
        "system": chat.system,
        **chat.options,
    }
    return json.dumps(decisive, sort_keys=True, default=repr)


def brief(value: Any) -> str:
    """A value as an error shows it."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
