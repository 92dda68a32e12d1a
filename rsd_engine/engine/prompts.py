"""From what a user passes as prompts to token ids and the PRM's question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    question: str  # what the PRM reads: the bare question


def is_single_prompt(prompts: Any) -> bool:
    """Whether `prompts` is one prompt and not a sequence of prompts.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(prompts, str | Mapping):
        return True
    if not _is_list(prompts):
        raise ValueError(f"prompts must be a prompt or a list of prompts, got {_kind(prompts)}")
    return len(prompts) > 0 and all(isinstance(item, int) for item in prompts)


def resolve_prompts(prompts: Prompt | Sequence[Prompt], tokenizer: Any) -> list[ResolvedPrompt]:
    """One prompt or several, as `generate` takes them."""
    if is_single_prompt(prompts):
        return [resolve_prompt(prompts, tokenizer)]  # type: ignore[arg-type]
    return [resolve_prompt(prompt, tokenizer) for prompt in prompts]  # type: ignore[arg-type]


def resolve_chats(
    messages: Sequence[Message] | Sequence[Sequence[Message]], tokenizer: Any
) -> list[ResolvedPrompt]:
    """One conversation or several, as `chat` takes them."""
    if not _is_list(messages):
        raise ValueError(
            f"messages must be {_CONVERSATION}, or a list of such lists; got {_kind(messages)}"
        )
    if not messages or isinstance(messages[0], Mapping):
        return [resolve_chat(messages, tokenizer)]  # type: ignore[arg-type]
    return [resolve_chat(conversation, tokenizer) for conversation in messages]  # type: ignore[arg-type]


def resolve_any(prompt: Prompt | Sequence[Message], tokenizer: Any) -> ResolvedPrompt:
    """One prompt or one conversation."""
    if _is_list(prompt) and prompt and isinstance(prompt[0], Mapping):  # type: ignore[index]
        return resolve_chat(prompt, tokenizer)  # type: ignore[arg-type]
    return resolve_prompt(prompt, tokenizer)  # type: ignore[arg-type]


def resolve_prompt(prompt: Prompt, tokenizer: Any) -> ResolvedPrompt:
    """Raw text, token ids, or a dict of either with the bare `question`.

    Raises:
        ValueError: the prompt is empty, of another type, or has unknown keys or ids.
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
    """A conversation through the chat template; the question is the last user message.

    Raises:
        ValueError: no messages, a message without role and content, no user message or one that
            is not text, messages that the chat template refuses, or no chat template.
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
        raise ValueError("got a message as a prompt; conversations go to chat()")
    unknown = set(prompt) - _PROMPT_KEYS
    if unknown or len({"prompt", "prompt_token_ids"} & set(prompt)) != 1:
        raise ValueError(
            "a prompt dict needs either 'prompt' or 'prompt_token_ids', and may have "
            f"'question'; got keys {list(prompt)}"
        )


def _text_and_ids(prompt: Any, tokenizer: Any) -> tuple[str, list[int]]:
    if isinstance(prompt, str):
        return prompt, _encode(prompt, tokenizer)
    if not _is_list(prompt):
        raise ValueError(f"a prompt must be {_PROMPT}, got {_kind(prompt)}")
    for token in prompt:
        if type(token) is not int:
            raise ValueError(f"a prompt must be {_PROMPT}, got a list that holds {_kind(token)}")
    ids = list(prompt)
    _check_ids(ids, len(tokenizer))
    return tokenizer.decode(ids, skip_special_tokens=True), ids


def _check_ids(ids: Sequence[int], num_ids: int) -> None:
    bad = [i for i in ids if not 0 <= i < num_ids]
    if bad:
        raise ValueError(f"prompt_token_ids must be in [0, {num_ids - 1}], got {bad[0]}")


def _encode(text: str, tokenizer: Any, **options: Any) -> list[int]:
    _check_text("prompt", text)
    # Not verbose: whether a prompt is too long is the engine's to say.
    return list(tokenizer.encode(text, verbose=False, **options))


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has half of a surrogate pair at character {error.start}, which is no text"
        ) from None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _kind(value: Any) -> str:
    hint = " (use .tolist())" if hasattr(value, "tolist") else ""
    return f"{type(value).__name__}{hint}"
