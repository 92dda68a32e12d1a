"""Conversations become the text that transformers makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rsd_engine.engine.chat.conversation import ChatOptions
from rsd_engine.engine.prompts import PromptReader, ResolvedPrompt
from tests.engine.chat.templates import CHATML, LLAMA, PARTS, STRICT

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " What is 2 + 3? "}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    ],
}
TOOL = {"role": "tool", "tool_call_id": "1", "content": "5"}
ANSWER = {"role": "assistant", "content": "It is"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CHATS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "system only": [SYSTEM],
    "assistant first": [ANSWER, USER],
    "several turns": [SYSTEM, USER, ANSWER, USER],
    "a tool was called": [USER, CALL, TOOL],
    "null content": [USER, {"role": "assistant", "content": None}, USER],
}


def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: one number
        b: another
    """
    return a + b


def read(
    reader: PromptReader, messages: Any, question: Any = None, **options: Any
) -> ResolvedPrompt:
    [resolved] = reader.conversations(messages, question, ChatOptions(**options))
    return resolved


def transformers_says(tokenizer: Any, messages: Any, **options: Any) -> str:
    options = {"add_generation_prompt": True, **options}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


@pytest.mark.parametrize("template", [CHATML, LLAMA], ids=["chatml", "llama"])
@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("extra", [{}, {"enable_thinking": False}], ids=["plain", "no thinking"])
def test_text_and_ids_are_those_of_transformers(
    reader: PromptReader, tokenizer: Any, name: str, template: str, extra: dict[str, Any]
) -> None:
    found = read(reader, CHATS[name], chat_template=template, chat_template_kwargs=extra)
    expected = transformers_says(tokenizer, CHATS[name], chat_template=template, **extra)
    assert found.text == expected
    ids = tokenizer.apply_chat_template(
        CHATS[name], chat_template=template, add_generation_prompt=True, return_dict=False, **extra
    )
    assert list(found.token_ids) == ids


def test_thinking_is_off_only_when_asked(reader: PromptReader) -> None:
    for value, thinks in ((False, False), (True, True)):
        found = read(
            reader, [USER], chat_template=CHATML, chat_template_kwargs={"enable_thinking": value}
        )
        assert found.text is not None
        assert ("</think>" not in found.text) == thinks


@pytest.mark.parametrize("tools", [TOOLS, [add]], ids=["schema", "function"])
def test_tools(reader: PromptReader, tokenizer: Any, tools: list[Any]) -> None:
    found = read(reader, CHATS["a tool was called"], chat_template=CHATML, tools=tools)
    expected = transformers_says(
        tokenizer, CHATS["a tool was called"], chat_template=CHATML, tools=tools
    )
    assert found.text == expected
    assert '"name": "add"' in expected


def test_arguments_of_a_tool_call_may_be_json_text_as_openai_gives_them(
    reader: PromptReader,
) -> None:
    call = {"name": "add", "arguments": '{"a": 2, "b": 3}'}
    as_text = [USER, {**CALL, "tool_calls": [{"type": "function", "function": call}]}, TOOL]
    expected = read(reader, [USER, CALL, TOOL], chat_template=CHATML).text
    assert read(reader, as_text, chat_template=CHATML).text == expected
    assert expected is not None and '"arguments": {"a": 2, "b": 3}}' in expected


def test_how_a_conversation_ends(reader: PromptReader, tokenizer: Any) -> None:
    chat = [USER, ANSWER]
    for options in (
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": False},
    ):
        for template in (CHATML, LLAMA):
            found = read(reader, chat, chat_template=template, **options)
            expected = transformers_says(
                tokenizer,
                chat,
                chat_template=template,
                **{"add_generation_prompt": False, **options},
            )
            assert found.text == expected
    assert found.text.endswith("It is")  # type: ignore[union-attr]


def test_parts_reach_a_template_that_reads_them(reader: PromptReader, tokenizer: Any) -> None:
    parts = [{"type": "text", "text": " 2 +"}, {"type": "text", "text": "3 "}]
    chat = [SYSTEM, {"role": "user", "content": parts}]
    found = read(reader, chat, chat_template=PARTS)
    assert found.text == transformers_says(tokenizer, chat, chat_template=PARTS)
    assert found.text == "<system>Be brief.<user>2 +3<assistant>"
    assert found.question == " 2 +\n3 "


@pytest.mark.parametrize("template", [CHATML, LLAMA, "{{ messages[0].content | tojson }}"])
def test_parts_are_joined_for_any_other(
    reader: PromptReader, tokenizer: Any, template: str
) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a {}", "b")]}]
    joined = [{"role": "user", "content": "a {}\nb"}]
    found = read(reader, chat, chat_template=template)
    assert found.text == transformers_says(tokenizer, joined, chat_template=template)


def test_the_prm_reads_the_last_user_message_or_what_it_is_given(reader: PromptReader) -> None:
    def question(chat: Any, given: str | None = None) -> str:
        return read(reader, chat, given, chat_template=CHATML).question

    assert question([SYSTEM, USER, ANSWER]) == USER["content"]
    assert question([USER, CALL, TOOL]) == USER["content"]
    assert question([SYSTEM]) == "Be brief."
    assert question([ANSWER]) == "It is"
    assert question([SYSTEM, USER], "What is 1 + 1?") == "What is 1 + 1?"


def test_one_question_for_all_or_one_for_each(reader: PromptReader) -> None:
    def questions(given: Any) -> list[str]:
        options = ChatOptions(chat_template=CHATML)
        found = reader.conversations([[USER], [SYSTEM]], given, options)
        return [prompt.question for prompt in found]

    assert questions("q") == ["q", "q"]
    assert questions(["q", None]) == ["q", "Be brief."]
    with pytest.raises(ValueError, match=r"one entry per conversation \(2\), got 1"):
        questions(["q"])
    with pytest.raises(ValueError, match="question must be text, or a list"):
        questions(5)


def test_a_dict_of_messages_is_a_conversation_with_options(reader: PromptReader) -> None:
    options: dict[str, Any] = {
        "chat_template": CHATML,
        "chat_template_kwargs": {"enable_thinking": False},
        "tools": TOOLS,
    }
    expected = read(reader, [USER], "q", **options)
    assert reader.one({"messages": [USER], "question": "q", **options}) == expected
    with pytest.raises(ValueError, match=r"'messages' may have .*'tools'.*, got \['temperature'\]"):
        reader.one({"messages": [USER], "temperature": 1})


def test_numbers_of_numpy_and_models_of_pydantic_are_json_values(reader: PromptReader) -> None:
    class Part:
        def model_dump(self) -> dict[str, str]:
            return {"name": "x"}

    template = "{{ size + 1 }} {{ row[1] }} {{ part.name }}"
    kwargs = {"size": np.int64(4), "row": np.arange(3), "part": Part()}
    found = read(reader, [USER], chat_template=template, chat_template_kwargs=kwargs)
    assert found.text == "5 1 x"


def test_token_ids_of_numpy(reader: PromptReader) -> None:
    [found] = reader.prompts(list(np.array([3, 4])))
    assert found.token_ids == (3, 4)
    assert all(type(token) is int for token in found.token_ids)


LOOP: list[Any] = []
LOOP.append(LOOP)


def message(content: Any, role: Any = "user", **more: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content, **more}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"content": "a"}], "a message needs 'role' and 'content'"),
        (message("a", role=3), "the role of a message must be text, got 3"),
        (message(None), "role 'user' must be text or a list of text parts, got None"),
        (message(None, role="tool"), "role 'tool' must be text or a list of text parts"),
        (message(5), "role 'user' must be text, got 5"),
        (message("\ud83d"), "role 'user' must be text that UTF-8 can encode"),
        (message(["a"]), r"parts such as \{'type': 'text', .*, got one of str"),
        (
            message([{"type": "image_url", "image_url": {}}]),
            "got one of type 'image_url'; these models read text alone",
        ),
        (message([{"type": "text"}]), "the text of a part of .* must be text, got None"),
        (message("a", tool_calls={"name": "f"}), "tool_calls must be a list of objects"),
        (
            message("a", tool_calls=[{"function": {"name": "f", "arguments": "a=2"}}]),
            "JSON text of one, got 'a=2'",
        ),
        (message("a", more=LOOP), "must hold JSON values: Circular reference"),
        (message("a", more={1, 2}), "must hold JSON values: got set"),
        (message(None, role="assistant"), "no message has text for the PRM; pass question="),
    ],
)
def test_messages_that_are_not_allowed(reader: PromptReader, messages: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        read(reader, messages)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chat_template": 5}, "chat_template must be text, got 5"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs must be a dict"),
        ({"chat_template_kwargs": {"tokenize": True}}, "variables of the template, got 'tokenize'"),
        ({"chat_template_kwargs": {"messages": []}}, "got 'messages'"),
        ({"tools": {"name": "f"}}, "tools must be a list of JSON schemas or functions, got dict"),
        ({"tools": ["f"]}, "tools must hold JSON schemas or functions, got 'f'"),
        ({"tools": [lambda x: x]}, "tools: function has no JSON schema"),
        ({"add_generation_prompt": 1}, "add_generation_prompt must be True or False"),
        ({"continue_final_message": "yes"}, "continue_final_message must be True or False"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "exclude each other",
        ),
    ],
)
def test_options_that_are_not_allowed(
    reader: PromptReader, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as error:
        read(reader, [USER], **options)
    assert "\n" not in str(error.value)


def test_documents_are_for_the_template(reader: PromptReader) -> None:
    template = "{% for d in documents %}{{ d.text }}{% endfor %}"
    kwargs = {"documents": [{"title": "t", "text": "read me"}]}
    found = read(reader, [USER], chat_template=template, chat_template_kwargs=kwargs)
    assert found.text == "read me"


def test_a_template_that_refuses(reader: PromptReader) -> None:
    assert read(reader, [USER], chat_template=STRICT).text == "[user] What is 2 + 3? "
    with pytest.raises(ValueError, match="roles must alternate user/assistant") as error:
        read(reader, [SYSTEM, USER], chat_template=STRICT)
    assert "\n" not in str(error.value)


def test_a_template_that_writes_nothing(reader: PromptReader) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        read(reader, [USER], chat_template="{# nothing #}")


def test_named_templates_of_a_tokenizer(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"default": "plain", "tool_use": "tools"}
    monkeypatch.setattr(tokenizer, "chat_template", named)
    reader = PromptReader(tokenizer)
    try:
        assert read(reader, [USER]).text == "plain"
        assert read(reader, [USER], tools=TOOLS).text == "tools"
        assert read(reader, [USER], chat_template="tool_use").text == "tools"
        del named["default"]
        with pytest.raises(ValueError, match="multiple chat templates"):
            read(reader, [USER])
    finally:
        reader.close()


def test_a_template_that_is_not_text(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", 5)
    with pytest.raises(ValueError, match="the tokenizer's chat template must be text, got 5"):
        read(PromptReader(tokenizer), [USER])


def test_a_tokenizer_without_a_template(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    reader = PromptReader(tokenizer)
    try:
        with pytest.raises(ValueError, match=r"no chat template; pass chat_template=, or use gene"):
            read(reader, [USER])
        assert read(reader, [USER], chat_template="given").text == "given"
    finally:
        reader.close()


def test_a_bad_conversation_is_named_by_its_index(reader: PromptReader) -> None:
    chats = [[USER], [USER], [USER], [SYSTEM, USER]]
    with pytest.raises(ValueError, match=r"^prompts\[3\]: the chat template cannot use these"):
        reader.conversations(chats, None, ChatOptions(chat_template=STRICT))
    with pytest.raises(ValueError, match=r"^prompts\[1\]: a prompt must be text"):
        reader.mixed(["a", 5.5, [USER]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^the chat template cannot use these"):
        reader.conversations(chats[3], None, ChatOptions(chat_template=STRICT))
