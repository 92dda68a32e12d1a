"""Turns what a user passes as prompts into token ids and the question that the PRM reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeGuard

from jinja2 import TemplateError

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Mapping[str, Any]
_PROMPT_KEYS = {"prompt", "prompt_token_ids", "question"}
_PROMPT = "text, a list of token ids or a dict"
_CONVERSATION = "a list of messages such as {'role': 'user', 'content': 'Hi'}"


@dataclass(frozen=True)
class ResolvedPrompt:
    """One prompt, ready for the models."""

    text: str | None
    token_ids: tuple[int, ...]
    question: str  # what the PRM reads


def resolve_prompts(prompts: Prompt | Sequence[Prompt], tokenizer: Any) -> list[ResolvedPrompt]:
    """One prompt or several, as `generate` takes them."""
    return [resolve_prompt(prompt, tokenizer) for prompt in _as_list(prompts)]


def resolve_mixed(
    prompts: Prompt | Sequence[Prompt | Sequence[Message]], tokenizer: Any
) -> list[ResolvedPrompt]:
    """One prompt, or several prompts and conversations, as `as_completed` takes them."""
    return [resolve_any(prompt, tokenizer) for prompt in _as_list(prompts)]


def resolve_chats(
    messages: Sequence[Message] | Sequence[Sequence[Message]], tokenizer: Any
) -> list[ResolvedPrompt]:
    """One conversation or several, as `chat` takes them."""
    if not _is_list(messages):
        raise ValueError(
            f"messages must be {_CONVERSATION}, or a list of such lists, got {_kind(messages)}"
        )
    is_single = not messages or isinstance(messages[0], Mapping)
    return [resolve_chat(chat, tokenizer) for chat in ([messages] if is_single else messages)]


def resolve_any(prompt: Any, tokenizer: Any) -> ResolvedPrompt:
    """One prompt or one conversation."""
    if _is_list(prompt) and prompt and isinstance(prompt[0], Mapping):
        return resolve_chat(prompt, tokenizer)
    return resolve_prompt(prompt, tokenizer)


def resolve_prompt(prompt: Any, tokenizer: Any) -> ResolvedPrompt:
    """Raw text, token ids, or a dict of either with the bare `question`.

    Raises:
        ValueError: the prompt is empty or of another type, or has unknown keys or ids.
    """
    question: str | None = None
    if isinstance(prompt, Mapping):
        _check_keys(prompt)
        question = prompt.get("question")
        if question is not None:
            _check_text("question", question)
        prompt = prompt["prompt"] if "prompt" in prompt else prompt["prompt_token_ids"]
    text, ids = _text_and_ids(prompt, tokenizer)
    if not ids:
        raise ValueError("prompt is empty; it needs at least one token")
    return ResolvedPrompt(text, tuple(ids), text if question is None else question)


def resolve_chat(messages: Sequence[Message], tokenizer: Any) -> ResolvedPrompt:
    """A conversation, by way of the chat template; the PRM's question is the last user message.

    Raises:
        ValueError: there are no messages, one has no role or content, none of the user or the last
            of the user is not text, the template refuses them, or the tokenizer has no template.
    """
    if not _is_list(messages):
        raise ValueError(f"a conversation must be {_CONVERSATION}, got {_kind(messages)}")
    if not messages:
        raise ValueError("messages is empty; it needs at least one message")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"a message needs 'role' and 'content', got {message!r}")
    questions = [m["content"] for m in messages if m["role"] == "user"]
    if not questions:
        raise ValueError("messages has no user message; the PRM reads the last one as the question")
    _check_text("the content of a user message", questions[-1])
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template; use generate() with raw text")
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template cannot use these messages: {error}") from error
    ids = _encode(text, tokenizer, add_special_tokens=False)
    return ResolvedPrompt(text, tuple(ids), questions[-1])


def _check_keys(prompt: Mapping[str, Any]) -> None:
    if "role" in prompt:
        raise ValueError("a prompt must not be a message; pass a list of messages to chat()")
    unknown = set(prompt) - _PROMPT_KEYS
    if unknown or len({"prompt", "prompt_token_ids"} & set(prompt)) != 1:
        raise ValueError(
            "a prompt dict needs either 'prompt' or 'prompt_token_ids', and may have "
            f"'question', got keys {list(prompt)}"
        )


def _text_and_ids(prompt: Any, tokenizer: Any) -> tuple[str, list[int]]:
    if isinstance(prompt, str):
        return prompt, _encode(prompt, tokenizer)
    if not _is_list(prompt):
        raise ValueError(f"a prompt must be {_PROMPT}, got {_kind(prompt)}")
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise ValueError(f"a prompt must be {_PROMPT}, got a list that holds {_kind(token)}")
    ids = [int(token) for token in prompt]
    check_ids(ids, len(tokenizer))
    return tokenizer.decode(ids, skip_special_tokens=True), ids


def check_ids(ids: Sequence[int], num_ids: int) -> None:
    """Raises ValueError unless every id is in [0, num_ids - 1]."""
    bad = [i for i in ids if not 0 <= i < num_ids]
    if bad:
        raise ValueError(f"prompt_token_ids must be in [0, {num_ids - 1}], got {bad[0]}")


def _encode(text: str, tokenizer: Any, **options: Any) -> list[int]:
    _check_text("prompt", text)
    # Not verbose: the engine itself says whether a prompt is too long.
    return list(tokenizer.encode(text, verbose=False, **options))


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be text that UTF-8 can encode, got half of a surrogate pair at "
            f"character {error.start}"
        ) from None


def _as_list(prompts: Any) -> Sequence[Any]:
    """The prompts; a list of their own for a single one, which may be a list of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not _is_list(prompts):
        raise ValueError(f"prompts must be a prompt or a list of prompts, got {_kind(prompts)}")
    is_single = len(prompts) > 0 and all(isinstance(item, Integral) for item in prompts)
    return [prompts] if is_single else prompts


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _kind(value: Any) -> str:
    hint = " (use .tolist())" if hasattr(value, "tolist") else ""
    return f"{type(value).__name__}{hint}"
