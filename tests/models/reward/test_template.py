"""A format of one's own: the template of a prompt, against the tokenizer's own reading of it."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rsd_engine import PrmTemplate
from rsd_engine.models.reward.qwen_math_prm import QWEN_MATH_PRM
from rsd_engine.models.reward.skywork import SKYWORK
from rsd_engine.models.reward.template import separator_ids
from tests.steps.toy_tokenizers import CHAT_TOKENS, llama_like, qwen_like, smollm_like

QUESTIONS = ["what is 2?", "add two\nand three.", " x", "\n", "", "é 日", "<|im_end|>"]
PROMPTS = [
    "{question}",
    "{question}\n",
    "Q: {question}\n\nA:",
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>{question}\n",
    "we add <|im_start|>two {question} so<|im_end|>",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=qwen_like([*CHAT_TOKENS, "<extra_0>"]), bos_token="<|im_start|>"
    )


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_prompt_is_read_as_it_is_written(
    tokenizer: PreTrainedTokenizerFast, prompt: str, question: str
) -> None:
    made = PrmTemplate(prompt, "<extra_0>").applied_to(QWEN_MATH_PRM).format(tokenizer)
    # a special token in the question is read as its letters, which no part of a prompt joins
    harmless = question.replace("<|im_end|>", "\ue000")
    wanted = tokenizer.encode(prompt.format(question=harmless), add_special_tokens=False)
    letters = made.encoder.encode("<|im_end|>", add_special_tokens=False).ids
    mark = tokenizer.encode("\ue000", add_special_tokens=False)
    assert made.prompt_ids(question) == _replaced(wanted, mark, letters)


def _replaced(ids: list[int], part: list[int], other: list[int]) -> list[int]:
    for at in range(len(ids) - len(part) + 1):
        if ids[at : at + len(part)] == part:
            return [*ids[:at], *other, *_replaced(ids[at + len(part) :], part, other)]
    return ids


def test_a_template_may_say_what_a_family_says(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within "
        "\\boxed{}.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    for family, template in (
        (SKYWORK, PrmTemplate("<|im_start|>{question}\n", "\n\n")),
        (QWEN_MATH_PRM, PrmTemplate(chat, "<extra_0>")),
    ):
        own, theirs = template.applied_to(family), family
        for question in QUESTIONS:
            ids = own.format(tokenizer).prompt_ids(question)
            assert ids == theirs.format(tokenizer).prompt_ids(question)
        assert own.format(tokenizer).separator_ids == theirs.format(tokenizer).separator_ids
        assert own.threshold == theirs.threshold and own.name == f"custom ({family.name})"
    assert PrmTemplate("{question}", "x", threshold=0.2).applied_to(SKYWORK).threshold == 0.2


@pytest.mark.parametrize(
    ("made", "separator", "tokens"),
    [
        (qwen_like(), "\n", ["Ċ"]),
        (qwen_like(), "\n\n", ["ĊĊ"]),
        (qwen_like(), "<|im_end|>", ["<|im_end|>"]),
        (qwen_like(), "\n<|im_end|>", ["Ċ", "<|im_end|>"]),
        (smollm_like(), "\n\n", ["Ċ", "Ċ"]),  # all of them; the reward is read at the last
        (llama_like(), "\n", ["▁", "<0x0A>"]),
    ],
)
def test_separators(made: Tokenizer, separator: str, tokens: list[str]) -> None:
    assert [made.id_to_token(i) for i in separator_ids(made, separator)] == tokens


def test_a_separator_that_cannot_be_written() -> None:
    made = llama_like()
    state = made.to_str().replace('"byte_fallback":true', '"byte_fallback":false')
    with pytest.raises(ValueError, match=r"prm_separator='ки' is no text of the PRM's tokens"):
        separator_ids(Tokenizer.from_str(state), "ки")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "Q"}, r"prompt must have \{question\} in it once, got 'Q'"),
        ({"prompt": "{question}{question}"}, "in it once"),
        ({"prompt": 3}, "prm_format: prompt must be text, got 3"),
        ({"separator": ""}, "prm_format: separator is empty"),
        ({"separator": "\ud800"}, "prm_format: separator"),
        ({"threshold": "x"}, "prm_format: threshold must be a number"),
        ({"threshold": float("nan")}, "prm_format: threshold must be a finite number"),
        ({"family": 1}, "prm_format: family must be text, got 1"),
    ],
)
def test_what_is_not_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrmTemplate(**{"prompt": "{question}", "separator": "\n", **arguments})
