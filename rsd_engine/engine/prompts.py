"""Turns what a user passes as prompts into token ids and the question that the PRM reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from rsd_engine.arguments import check_text, is_list, kind
from rsd_engine.engine.chat.conversation import (
    MESSAGES,
    OPTION_NAMES,
    ChatOptions,
    Message,
    check_messages,
    default_question,
)
from rsd_engine.engine.chat.renderer import TemplateRenderer

Prompt = str | Sequence[int] | Mapping[str, Any]
_PROMPT_KEYS = {"prompt", "prompt_token_ids", "question"}
_CHAT_KEYS = {"messages", "question"} | OPTION_NAMES
_PROMPT = "text, a list of token ids or a dict"


@dataclass(frozen=True)
class ResolvedPrompt:
    """One prompt, ready for the models."""

    text: str | None
    token_ids: tuple[int, ...]
    question: str  # what the PRM reads
    is_ids: bool = False  # it was given as ids
    draft: ResolvedPrompt | None = None  # for a draft that has another tokenizer


class PromptReader:
    """Reads the prompts and conversations of one engine.

    Args:
        tokenizer: of draft and target, with their chat template.
        draft_tokenizer: the draft's, if it is another one; `tokenizer` is the target's then.
    """

    def __init__(self, tokenizer: Any, draft_tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._draft_tokenizer = draft_tokenizer
        self._renderer = TemplateRenderer()

    def prompts(self, prompts: Prompt | Sequence[Prompt]) -> list[ResolvedPrompt]:
        """One prompt or several, as `generate` takes them."""
        return _each(self._prompt, _as_list(prompts))

    def mixed(self, prompts: Prompt | Sequence[Prompt | Sequence[Message]]) -> list[ResolvedPrompt]:
        """One prompt, or several prompts and conversations, as `as_completed` takes them."""
        return _each(self.one, _as_list(prompts))

    def one(self, prompt: Prompt | Sequence[Message]) -> ResolvedPrompt:
        """One prompt or one conversation, as `stream` takes it."""
        if isinstance(prompt, Mapping) and "messages" in prompt:
            return self._conversation_dict(prompt)
        if is_list(prompt) and prompt and isinstance(prompt[0], Mapping):
            return self._conversation(prompt, None, ChatOptions())
        return self._prompt(prompt)

    def conversations(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        question: str | Sequence[str | None] | None,
        options: ChatOptions,
    ) -> list[ResolvedPrompt]:
        """One conversation or several, as `chat` takes them."""
        if not is_list(messages):
            raise ValueError(
                f"messages must be {MESSAGES}, or a list of such lists, got {kind(messages)}"
            )
        is_single = not messages or isinstance(messages[0], Mapping)
        chats: Sequence[Any] = [messages] if is_single else messages
        pairs = list(zip(chats, _questions(question, len(chats)), strict=True))
        return _each(lambda pair: self._conversation(pair[0], pair[1], options), pairs)

    def close(self) -> None:
        """Ends the process that renders templates, if it has started."""
        self._renderer.close()

    def _prompt(self, prompt: Any) -> ResolvedPrompt:
        tokenizers = [t for t in (self._tokenizer, self._draft_tokenizer) if t is not None]
        num_ids = max(map(len, tokenizers))  # which writer reads given ids is not known yet
        return self._for_writers(lambda tokenizer: resolve_prompt(prompt, tokenizer, num_ids))

    def _for_writers(self, read: Callable[[Any], ResolvedPrompt]) -> ResolvedPrompt:
        """What `read` makes of a prompt, for the tokenizer of every writer."""
        resolved = read(self._tokenizer)
        if self._draft_tokenizer is None:
            return resolved
        with naming_model("draft"):
            return replace(resolved, draft=read(self._draft_tokenizer))

    def _conversation_dict(self, prompt: Mapping[str, Any]) -> ResolvedPrompt:
        unknown = sorted(set(prompt) - _CHAT_KEYS, key=str)
        if unknown:
            raise ValueError(
                f"a prompt dict with 'messages' may have {sorted(_CHAT_KEYS - {'messages'})}, got "
                f"{unknown}"
            )
        options = {name: prompt[name] for name in OPTION_NAMES & set(prompt)}
        return self._conversation(
            prompt["messages"], prompt.get("question"), ChatOptions(**options)
        )

    def _conversation(
        self, messages: object, question: str | None, options: ChatOptions
    ) -> ResolvedPrompt:
        """A conversation, by way of the chat template.

        Raises:
            ValueError: a message or an option is not allowed, or the template cannot use them.
        """
        checked = check_messages(messages)
        if question is None:
            question = default_question(checked)
        check_text("question", question)
        asked: str = question

        def read(tokenizer: Any) -> ResolvedPrompt:
            text = self._renderer.render(checked, options.arguments(tokenizer))
            ids = _encode(text, tokenizer, add_special_tokens=False)
            return ResolvedPrompt(text, _not_empty(ids), asked)

        return self._for_writers(read)


def resolve_prompt(prompt: Any, tokenizer: Any, num_ids: int | None = None) -> ResolvedPrompt:
    """Raw text, token ids, or a dict of either with the bare `question`.

    Args:
        prompt: what the user gave.
        tokenizer: of the model that reads it.
        num_ids: given ids must be below this; None takes the tokenizer's.

    Raises:
        ValueError: the prompt is empty or of another type, or has unknown keys or ids.
    """
    question: str | None = None
    if isinstance(prompt, Mapping):
        _check_keys(prompt)
        question = prompt.get("question")
        if question is not None:
            check_text("question", question)
        prompt = prompt["prompt"] if "prompt" in prompt else prompt["prompt_token_ids"]
    is_ids = not isinstance(prompt, str)
    if is_ids:
        ids = _given_ids(prompt, len(tokenizer) if num_ids is None else num_ids)
        text = tokenizer.decode(ids, skip_special_tokens=True)
    else:
        text, ids = prompt, _encode(prompt, tokenizer)
    question = text if question is None else question
    return ResolvedPrompt(text, _not_empty(ids), question, is_ids)


def check_ids(ids: Sequence[int], num_ids: int) -> None:
    """Raises ValueError unless every id is in [0, num_ids - 1]."""
    bad = [i for i in ids if not 0 <= i < num_ids]
    if bad:
        raise ValueError(f"prompt_token_ids must be in [0, {num_ids - 1}], got {bad[0]}")


@contextmanager
def naming_model(name: str) -> Iterator[None]:
    """Says which model an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


@contextmanager
def naming(index: int, count: int, what: str = "prompts") -> Iterator[None]:
    """Says which of several prompts, or of other things, an error is about."""
    try:
        yield
    except ValueError as error:
        if count == 1:
            raise
        raise ValueError(f"{what}[{index}]: {error}") from error


def _each(resolve: Callable[[Any], ResolvedPrompt], prompts: Sequence[Any]) -> list[ResolvedPrompt]:
    found = []
    for index, prompt in enumerate(prompts):
        with naming(index, len(prompts)):
            found.append(resolve(prompt))
    return found


def _questions(given: object, count: int) -> Sequence[str | None]:
    """The question of each of `count` conversations, from one for all, one for each, or None."""
    if given is None or isinstance(given, str):
        return [given] * count
    if not is_list(given):
        raise ValueError(
            f"question must be text, or a list with one per conversation, got {given!r}"
        )
    if len(given) != count:
        raise ValueError(
            f"question must have one entry per conversation ({count}), got {len(given)}"
        )
    return given


def _check_keys(prompt: Mapping[str, Any]) -> None:
    if "role" in prompt:
        raise ValueError("a prompt must not be a message; pass a list of messages to chat()")
    if "messages" in prompt:
        raise ValueError("generate() takes no messages; pass them to chat()")
    unknown = set(prompt) - _PROMPT_KEYS
    if unknown or len({"prompt", "prompt_token_ids"} & set(prompt)) != 1:
        raise ValueError(
            "a prompt dict needs either 'prompt' or 'prompt_token_ids', and may have "
            f"'question', got keys {list(prompt)}"
        )


def _given_ids(prompt: Any, num_ids: int) -> list[int]:
    if not is_list(prompt):
        raise ValueError(f"a prompt must be {_PROMPT}, got {kind(prompt)}")
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise ValueError(f"a prompt must be {_PROMPT}, got a list that holds {kind(token)}")
    ids = [int(token) for token in prompt]
    check_ids(ids, num_ids)
    return ids


def _encode(text: str, tokenizer: Any, **options: Any) -> list[int]:
    check_text("prompt", text)
    # Not verbose: the engine itself says whether a prompt is too long.
    return list(tokenizer.encode(text, verbose=False, **options))


def _not_empty(ids: list[int]) -> tuple[int, ...]:
    if not ids:
        raise ValueError("prompt is empty; it needs at least one token")
    return tuple(ids)


def _as_list(prompts: Any) -> Sequence[Any]:
    """The prompts; a list of their own for a single one, which may be a list of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not is_list(prompts):
        raise ValueError(f"prompts must be a prompt or a list of prompts, got {kind(prompts)}")
    is_single = len(prompts) > 0 and all(isinstance(item, Integral) for item in prompts)
    return [prompts] if is_single else prompts
