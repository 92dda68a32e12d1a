"""Qwen2.5-Math-PRM and Qwen2.5-Math-7B-PRM800K (Zhang et al., 2025), as their cards feed them."""

from __future__ import annotations

from functools import partial
from typing import Any

from rsd_engine.models.decoders.qwen import QWEN2
from rsd_engine.models.reward.family import PrmFormat, RewardFamily, encode, token_id
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import TwoClassHead

ARCHITECTURE = "Qwen2ForProcessRewardModel"
_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def chat_format(
    tokenizer: Any, *, system: str, separator: str, after_question: str = ""
) -> PrmFormat:
    """ChatML with a system text; the special token `separator` after every step.

    Args:
        tokenizer: fast tokenizer of the PRM.
        system: text of the system message.
        separator: a special token.
        after_question: what the user says after the question.

    Raises:
        ValueError: the tokenizer lacks a token.
    """
    encoder = plain_encoder(tokenizer)
    start, end = (token_id(tokenizer, token) for token in ("<|im_start|>", "<|im_end|>"))
    newline = encode(encoder, "\n")
    system_ids = encode(encoder, f"system\n{system}")
    assistant = encode(encoder, "assistant\n")
    return PrmFormat(
        before=(start, *system_ids, end, *newline, start),
        prefix="user\n",
        suffix=after_question,
        after=(end, *newline, start, *assistant),
        separator_ids=(token_id(tokenizer, separator),),
        encoder=encoder,
    )


QWEN_MATH_PRM = RewardFamily(
    name="Qwen2.5-Math-PRM",
    architectures={ARCHITECTURE: QWEN2},
    head=TwoClassHead,
    head_tensors={
        "score.0.weight": "inner",
        "score.0.bias": "inner_bias",
        "score.2.weight": "classes",
        "score.2.bias": "classes_bias",
    },
    head_dtype=None,
    format=partial(chat_format, system=_SYSTEM, separator="<extra_0>"),
    threshold=0.7,
)
