"""RLHFlow's Llama3.1-8B-PRM (Xiong et al., 2024): a chat in which every answer is + or -."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer

from rsd_engine.models.decoders.llama import LLAMA
from rsd_engine.models.reward.family import PrmFormat, RewardFamily, encode, named, spelled
from rsd_engine.models.reward.head_tensors import LM_HEAD, two_words
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import ValueHead

# What the template of Llama 3.1 writes where a chat has no system message.
_SYSTEM = "\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def _header(role: str) -> tuple[str, ...]:
    return "<|start_header_id|>", role, "<|end_header_id|>"


def _format(tokenizer: Any) -> PrmFormat:
    """The user says question and first step, then step by step; the assistant always says +.

    The reward is read where the answer would begin, before the +, which goes with the header of the
    user's next turn in front of the next step.
    """
    encoder = plain_encoder(tokenizer)
    answer = spelled(tokenizer, "<|eot_id|>", *_header("assistant"), "\n\n")
    return PrmFormat(
        before=spelled(
            tokenizer, "<|begin_of_text|>", *_header("system"), _SYSTEM, "<|eot_id|>",
            *_header("user"),
        ),
        prefix="\n\n",
        suffix="",
        after=(),
        before_step=spelled(tokenizer, "+", "<|eot_id|>", *_header("user"), "\n\n"),
        separator_ids=answer,
        encoder=encoder,
        encode_step=partial(_encode_step, encoder),
        trims_question=True,
    )  # fmt: skip


def _encode_step(encoder: Tokenizer, text: str, first: bool) -> list[int]:
    """A step as it stands in its turn; the first one follows the question and a space."""
    text = text.strip()
    return encode(encoder, f" {text}" if first and text else text)


RLHFLOW = RewardFamily(
    name="RLHFlow-PRM",
    architectures={"LlamaForCausalLM": LLAMA},
    head=ValueHead,
    head_tensors=LM_HEAD,
    head_dtype=torch.float32,
    format=_format,
    recognise=named("llama3.1-8b-prm"),
    prepare=two_words("+", "-"),
    reads_lm_head=True,
    threshold=0.5,  # from there on + is the likelier of the two
)
