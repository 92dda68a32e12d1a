"""A conversation: what it may hold, what the PRM reads of it, and how a template is asked."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rsd_engine.arguments import check_flag, check_text, is_list, kind

Message = Mapping[str, Any]
Tool = Mapping[str, Any] | Callable[..., Any]

MESSAGES = "a list of messages such as {'role': 'user', 'content': 'Hi'}"


@dataclass(frozen=True)
class ChatOptions:
    """How a conversation becomes text; see `Engine.chat`.

    Raises:
        ValueError: an option is not allowed.
    """

    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    tools: Sequence[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            check_text("chat_template", self.chat_template)
        if not isinstance(self.chat_template_kwargs, Mapping | None):
            raise ValueError(
                "chat_template_kwargs must be a dict of the template's variables, got "
                f"{self.chat_template_kwargs!r}"
            )
        check_flag("continue_final_message", self.continue_final_message)
        if self.add_generation_prompt is not None:
            check_flag("add_generation_prompt", self.add_generation_prompt)
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError(
                "add_generation_prompt and continue_final_message exclude each other: the first "
                "begins a new message, the second continues the last one; set one of them to False"
            )

    def arguments(self, tokenizer: Any) -> dict[str, Any]:
        """The arguments of transformers' `apply_chat_template`, as JSON values."""
        tools = None if self.tools is None else _tool_schemas(self.tools)
        begin = self.add_generation_prompt
        extra = self.chat_template_kwargs or {}
        if extra:
            _check_variables(extra, tokenizer)
        return {
            **tokenizer.special_tokens_map,
            **extra,
            "chat_template": _template(tokenizer, self.chat_template, tools),
            "tools": tools,
            "add_generation_prompt": not self.continue_final_message if begin is None else begin,
            "continue_final_message": self.continue_final_message,
        }


OPTION_NAMES = frozenset(field.name for field in fields(ChatOptions))


def check_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as JSON values, with the arguments of tool calls as objects.

    Raises:
        ValueError: there are none, or one is of another form.
    """
    if not is_list(messages):
        raise ValueError(f"a conversation must be {MESSAGES}, got {kind(messages)}")
    if not messages:
        raise ValueError("messages is empty; it needs at least one message")
    return [_checked_message(message) for message in messages]


def default_question(messages: Sequence[Message]) -> str:
    """What the PRM reads: the last user message, or without one the last message with text.

    Raises:
        ValueError: no message has text.
    """
    users = [message for message in messages if message["role"] == "user"]
    texts = [content_text(m["content"]) for m in users or messages if m.get("content") is not None]
    if not texts:
        raise ValueError("no message has text for the PRM; pass question=")
    return texts[-1]


def content_text(content: str | list[dict[str, str]]) -> str:
    """Content as one text; parts are joined by line breaks, as vLLM joins them."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _checked_message(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message:
        raise ValueError(f"a message needs 'role' and 'content', got {message!r}")
    check_text("the role of a message", message["role"])
    checked = dict(message)
    content = message.get("content")
    who = f"the content of a message of role {message['role']!r}"
    if is_list(content):
        checked["content"] = [_checked_part(who, part) for part in content]
    elif content is not None:
        check_text(who, content)
    elif message["role"] != "assistant":
        raise ValueError(f"{who} must be text or a list of text parts, got {content!r}")
    if message.get("tool_calls") is not None:
        checked["tool_calls"] = _tool_calls(message["tool_calls"])
    return checked


def _checked_part(who: str, part: object) -> dict[str, Any]:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        got = f"type {part.get('type')!r}" if isinstance(part, Mapping) else kind(part)
        raise ValueError(
            f"{who} may have parts such as {{'type': 'text', 'text': 'Hi'}}, got one of {got}; "
            "these models read text alone"
        )
    check_text(f"the text of a part of {who.removeprefix('the ')}", part.get("text"))
    return dict(part)


def _tool_calls(calls: object) -> list[dict[str, Any]]:
    """Calls whose arguments are objects, as templates expect; OpenAI's API gives JSON text."""
    if not is_list(calls) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(f"tool_calls must be a list of objects, got {calls!r}")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": _tool_call(inner)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return dict(call)
    try:
        return {**call, "arguments": json.loads(arguments or "{}")}
    except (ValueError, RecursionError):
        raise ValueError(
            f"arguments of a tool call must be an object, or JSON text of one, got {arguments!r}"
        ) from None


def _tool_schemas(tools: object) -> list[dict[str, Any]]:
    if not is_list(tools):
        raise ValueError(f"tools must be a list of JSON schemas or functions, got {kind(tools)}")
    return [_tool_schema(tool) for tool in tools]


def _tool_schema(tool: object) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        return dict(tool)
    if not callable(tool):
        raise ValueError(f"tools must hold JSON schemas or functions, got {tool!r}")
    from transformers.utils import get_json_schema

    try:
        return dict(get_json_schema(tool))
    except Exception as error:  # transformers has exceptions of its own for this
        said = " ".join(str(error).split())
        raise ValueError(f"tools: {kind(tool)} has no JSON schema: {said}") from error


def _template(tokenizer: Any, given: str | None, tools: list[dict[str, Any]] | None) -> str:
    if given is None and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template; pass chat_template=, or use generate() with raw "
            "text"
        )
    found = tokenizer.get_chat_template(given, tools)
    check_text("the tokenizer's chat template", found)
    return str(found)


def _check_variables(extra: Mapping[str, Any], tokenizer: Any) -> None:
    """None of them may be what `apply_chat_template` takes itself, but for `documents`."""
    named = inspect.signature(tokenizer.apply_chat_template).parameters
    taken = sorted(set(extra) & ({*named, "messages"} - {"documents"}), key=str)
    if taken:
        raise ValueError(
            f"chat_template_kwargs must hold variables of the template, got {taken[0]!r}, "
            "which is an argument of transformers; remove it, or use chat()'s own argument"
        )
