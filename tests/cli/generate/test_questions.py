"""Lines of a question file: what they may say, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.questions import (
    InputLine,
    parse_question,
    read_lines,
)
from rsd_engine.engine.chat.questions import ChatSettings, question_seed

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Sys"}


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"prompt": "a"}\r\n\n  \n{"prompt": "b"}')
    assert [(line.number, line.raw) for line in read_lines(path)] == [
        (1, b'{"prompt": "a"}'),
        (4, b'{"prompt": "b"}'),
    ]
    with pytest.raises(UsageError, match="cannot read"):
        read_lines(tmp_path / "none")


def test_the_mark_that_windows_puts_before_text_is_not_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n')
    assert [line.raw for line in read_lines(path)] == [b'{"prompt": "a"}']


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"not json", "not JSON"),
        (b'{"prompt": "a"', "not JSON"),
        (b'{"prompt": "\xff"}', "not JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[1]", r"must be a JSON object, got \[1\]"),
        (b"{}", "needs one of"),
        (b'{"answer": 4}', r"got keys \['answer'\]"),
        (b'{"prompt": "a", "messages": []}', "needs one of"),
        (b'{"prompt": "a", "prompt_token_ids": [1]}', "needs one of"),
        (b'{"tools": []}', "needs one of"),
        (b'{"prompt": 5}', "prompt must be text, got 5"),
        (b'{"prompt": "a", "question": 5}', "question must be text, got 5"),
        (b'{"prompt_token_ids": "abc"}', "must be a list of integers"),
        (b'{"prompt_token_ids": [true]}', "must be a list of integers"),
        (b'{"messages": "hi"}', "messages must be a list"),
        (b'{"messages": []}', "messages must be a list"),
        (b'{"messages": ["hi"]}', "messages must be a list"),
        (b'{"prompt": "a", "id": [1]}', r"id must be text or an integer, got \[1\]"),
        (b'{"prompt": "a", "params": 1}', "params must be an object, got 1"),
        (
            b'{"prompt": "a", "top_p": 1, "max_tokens": 2}',
            r"\['max_tokens', 'top_p'\] must be inside",
        ),
    ],
)
def test_bad_lines_say_what_is_wrong(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_question(InputLine(1, raw))


@pytest.mark.parametrize(
    ("values", "chat", "system", "expected"),
    [
        ({"prompt": "hi"}, True, None, {"messages": [USER]}),
        ({"question": "hi", "answer": 3}, True, None, {"messages": [USER]}),
        ({"question": "hi"}, True, "Sys", {"messages": [SYSTEM, USER]}),
        ({"prompt": "hi"}, False, "Sys", {"prompt": "hi", "question": "hi"}),
        ({"prompt": "a", "question": "b"}, True, "Sys", {"prompt": "a", "question": "b"}),
        ({"prompt_token_ids": [1]}, True, "Sys", {"prompt_token_ids": [1]}),
        (
            {"prompt_token_ids": [1], "question": "b"},
            True,
            None,
            {"prompt_token_ids": [1], "question": "b"},
        ),
        ({"messages": [USER]}, False, "Sys", {"messages": [USER]}),
        (
            {"messages": [USER], "question": "b", "tools": [1]},
            False,
            None,
            {"messages": [USER], "question": "b", "tools": [1]},
        ),
        ({"prompt": "hi", "tools": [1]}, True, None, {"messages": [USER], "tools": [1]}),
        ({"prompt": "hi", "tools": [1]}, False, None, {"prompt": "hi", "question": "hi"}),
    ],
)
def test_engine_prompt(values: dict[str, Any], chat: bool, system: str | None, expected) -> None:  # type: ignore[no-untyped-def]
    question = parse_question(InputLine(1, json.dumps(values).encode()))
    assert ChatSettings(chat, system).engine_prompt(question.given) == expected


def test_options_of_the_chat_go_along() -> None:
    settings = ChatSettings(True, None, {"tools": [1], "chat_template_kwargs": {"a": 1}})
    for given in ({"prompt": "hi"}, {"messages": [USER]}):
        assert settings.engine_prompt(given) == {**settings.options, "messages": [USER]}
    assert settings.engine_prompt({"prompt": "hi", "tools": [2]})["tools"] == [2]
    raw = {"prompt": "a", "question": "b"}
    assert settings.engine_prompt(raw) == raw


def test_seeds_of_lines_are_fixed_and_all_different() -> None:
    seeds = {(seed, line): question_seed(seed, line) for seed in range(3) for line in range(1, 200)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= value < 2**53 for value in seeds.values())
    assert question_seed(0, 1) == 8225708212379481676 & (2**53 - 1)
