"""From what a user passes as prompts to token ids and the PRM's question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Mapping[str, Any]
_PROMPT_KEYS = {"prompt", "prompt_token_ids", "question"}


@dataclass(frozen=True)
class ResolvedPrompt:
    """One prompt, ready for the models."""

    text: str | None
    token_ids: tuple[int, ...]
    question: str  # what the PRM reads: the bare question


def is_single_prompt(prompts: Any) -> bool:
    """Whether `prompts` is one prompt and not a sequence of prompts."""
    if isinstance(prompts, str | Mapping):
        return True
    return len(prompts) > 0 and all(isinstance(item, int) for item in prompts)


def resolve_prompt(prompt: Prompt, tokenizer: Any) -> ResolvedPrompt:
    """Raw text, token ids, or a dict of either with the bare `question`.

    Raises:
        ValueError: the prompt is empty, of another type, or has unknown keys or ids.
    """
    question: str | None = None
    if isinstance(prompt, Mapping):
        unknown = sorted(set(prompt) - _PROMPT_KEYS)
        if unknown or len({"prompt", "prompt_token_ids"} & set(prompt)) != 1:
            raise ValueError(
                "a prompt dict needs either 'prompt' or 'prompt_token_ids', and may have "
                f"'question'; got keys {sorted(prompt)}"
            )
        question = prompt.get("question")
        prompt = prompt["prompt"] if "prompt" in prompt else prompt["prompt_token_ids"]
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
        text = prompt
    elif isinstance(prompt, Sequence) and all(isinstance(i, int) for i in prompt):
        ids = list(prompt)
        _check_ids(ids, len(tokenizer))
        text = tokenizer.decode(ids, skip_special_tokens=True)
    else:
        raise ValueError(f"a prompt must be text, token ids or a dict, got {type(prompt).__name__}")
    if not ids:
        raise ValueError("prompt is empty; it needs at least one token")
    return ResolvedPrompt(text, tuple(ids), text if question is None else str(question))


def _check_ids(ids: Sequence[int], num_ids: int) -> None:
    bad = [i for i in ids if not 0 <= i < num_ids]
    if bad:
        raise ValueError(f"prompt_token_ids must be in [0, {num_ids - 1}], got {bad[0]}")


def resolve_chat(messages: Sequence[Message], tokenizer: Any) -> ResolvedPrompt:
    """A conversation through the chat template; the question is the last user message.

    Raises:
        ValueError: no messages, a message without role and content, no user message, or a
            tokenizer without chat template.
    """
    if not messages:
        raise ValueError("messages is empty; it needs at least one message")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"a message needs 'role' and 'content', got {message!r}")
    questions = [m["content"] for m in messages if m["role"] == "user"]
    if not questions:
        raise ValueError("messages has no user message; the PRM reads the last one as the question")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template; use generate() with raw text")
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ResolvedPrompt(text, tuple(ids), str(questions[-1]))
