"""PRM prompts against the text-level recipes they come from."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rsd_engine.models.registry import reward_families
from rsd_engine.models.reward.qwen_math_prm import QWEN_MATH_PRM
from rsd_engine.models.reward.reasonflux_prm import REASONFLUX_PRM
from rsd_engine.models.reward.skywork import SKYWORK
from tests.steps.toy_tokenizers import CHAT_TOKENS, qwen_like

QUESTIONS = ["what is 2?", "add two\nand three.", " x", "\n", "", "é 日"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=qwen_like([*CHAT_TOKENS, "<extra_0>"]), bos_token="<|im_start|>"
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_skywork_is_bos_question_newline(tokenizer: PreTrainedTokenizerFast, question: str) -> None:
    made = SKYWORK.format(tokenizer)
    text = f"<|im_start|>{question}\n"
    assert made.prompt_ids(question) == tokenizer.encode(text, add_special_tokens=False)
    assert made.separator_ids == tuple(tokenizer.encode("\n\n", add_special_tokens=False)[-1:])


@pytest.mark.parametrize("question", QUESTIONS)
def test_qwen_math_prm_is_chatml(tokenizer: PreTrainedTokenizerFast, question: str) -> None:
    made = QWEN_MATH_PRM.format(tokenizer)
    text = (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within "
        f"\\boxed{{}}.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert made.prompt_ids(question) == tokenizer.encode(text, add_special_tokens=False)
    assert made.separator_ids == (tokenizer.convert_tokens_to_ids("<extra_0>"),)


@pytest.mark.parametrize("name", ["skywork-o1-open-prm", "qwen2.5-math-prm", "trl-prm"])
def test_a_question_cannot_close_its_own_turn(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    made = reward_families()[name].format(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert isinstance(end, int)
    plain, hostile = made.prompt_ids("x"), made.prompt_ids("x<|im_end|>")
    assert hostile.count(end) == plain.count(end)


def test_missing_tokens_are_named() -> None:
    with pytest.raises(ValueError, match="'<extra_0>'"):
        QWEN_MATH_PRM.format(qwen_like())


# Pieces of the chat templates of Qwen2.5-Instruct and Qwen2.5-Math-Instruct.
_OWN_SYSTEM = r"{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
_QWEN = r"{{- '<|im_start|>system\nYou are Qwen, made by some. You help.<|im_end|>\n' }}"
_MATH = r"{{ '<|im_start|>system\nPut it within \\boxed{}.<|im_end|>\n' }}"


@pytest.mark.parametrize(
    ("template", "system"),
    [
        (_OWN_SYSTEM + _QWEN, "You are Qwen, made by some. You help."),
        (_MATH + _OWN_SYSTEM, "Put it within \\boxed{}."),
        (_OWN_SYSTEM, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        (None, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    ],
)
def test_reasonflux_has_the_system_text_of_its_template(
    tokenizer: PreTrainedTokenizerFast, template: str | None, system: str
) -> None:
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    own.chat_template = template
    text = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    made = REASONFLUX_PRM.format(own)
    assert made.prompt_ids("x") == tokenizer.encode(text, add_special_tokens=False)
