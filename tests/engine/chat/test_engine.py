"""`Engine.chat` and its kin, with the options of a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_engine import Engine, SamplingParams
from tests.engine.chat.templates import CHATML, STRICT

USER = {"role": "user", "content": "the sum"}
PARAMS = SamplingParams(temperature=0.0, max_tokens=6)
OPTIONS: dict[str, Any] = {
    "chat_template": CHATML,
    "chat_template_kwargs": {"enable_thinking": False},
}


def test_the_answer_is_that_of_the_rendered_text(engine: Engine) -> None:
    [chat] = engine.chat([USER], PARAMS, use_tqdm=False, question="two", **OPTIONS)
    ids = engine.get_tokenizer().apply_chat_template(
        [USER],
        chat_template=CHATML,
        enable_thinking=False,
        add_generation_prompt=True,
        return_dict=False,
    )
    [raw] = engine.generate({"prompt_token_ids": ids, "question": "two"}, PARAMS, use_tqdm=False)
    assert list(chat.prompt_token_ids) == ids
    assert chat.outputs == raw.outputs
    [other] = engine.chat([USER], PARAMS, use_tqdm=False, question="one", **OPTIONS)
    rewards = [step.reward for result in (chat, other) for step in result.outputs[0].steps]
    assert len(set(rewards)) > 1  # the PRM read another question


def test_streams_and_mixed_batches_take_conversations_with_options(engine: Engine) -> None:
    [wanted] = engine.chat([USER], PARAMS, use_tqdm=False, question="two", **OPTIONS)
    prompt: dict[str, Any] = {"messages": [USER], "question": "two", **OPTIONS}
    prompts: list[Any] = ["a", prompt, [USER]]
    found = dict(engine.as_completed(prompts, PARAMS))
    assert found[1].outputs == wanted.outputs
    assert found[2].prompt_token_ids != wanted.prompt_token_ids
    stream = engine.stream(prompt, PARAMS)
    for _ in stream:
        pass
    assert stream.output is not None
    assert stream.output.outputs == wanted.outputs


def test_a_message_that_is_continued_ends_the_prompt(engine: Engine) -> None:
    [whole] = engine.chat([USER], PARAMS, use_tqdm=False)
    begun = [USER, {"role": "assistant", "content": "a b"}]
    [rest] = engine.chat(begun, PARAMS, use_tqdm=False, continue_final_message=True)
    assert whole.prompt is not None
    assert rest.prompt == whole.prompt + "a b"


def test_a_bad_conversation_among_good_ones_starts_nothing(engine: Engine) -> None:
    chats = [[USER], [{"role": "system", "content": "a"}]]
    with pytest.raises(ValueError, match=r"prompts\[1\]: the chat template cannot use"):
        engine.chat(chats, PARAMS, use_tqdm=False, chat_template=STRICT)
    assert not engine.parts.core.has_work
    assert len(engine.chat(chats[:1], PARAMS, use_tqdm=False, chat_template=STRICT)) == 1


def test_conversations_without_a_user(engine: Engine) -> None:
    for role in ("system", "assistant"):
        chat = [{"role": role, "content": "the sum"}]
        [result] = engine.chat(chat, PARAMS, use_tqdm=False, chat_template=CHATML)
        assert result.outputs[0].token_ids
