"""Qwen2.5-Math-PRM (Zhang et al., 2025), as its model card feeds it."""

from __future__ import annotations

from typing import Any

from rsd_engine.models.decoders.qwen import QWEN2
from rsd_engine.models.reward.family import PrmFormat, RewardFamily, encode, token_id
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import TwoClassHead

ARCHITECTURE = "Qwen2ForProcessRewardModel"
_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def _format(tokenizer: Any) -> PrmFormat:
    """ChatML with the system text of Qwen2.5-Math; `<extra_0>` after every step."""
    encoder = plain_encoder(tokenizer)
    start, end = (token_id(tokenizer, token) for token in ("<|im_start|>", "<|im_end|>"))
    newline = encode(encoder, "\n")
    system = encode(encoder, f"system\n{_SYSTEM}")
    assistant = encode(encoder, "assistant\n")
    return PrmFormat(
        before=(start, *system, end, *newline, start),
        prefix="user\n",
        suffix="",
        after=(end, *newline, start, *assistant),
        separator_ids=(token_id(tokenizer, "<extra_0>"),),
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
    format=_format,
    threshold=0.7,
)
