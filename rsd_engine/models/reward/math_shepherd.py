"""Math-Shepherd (Wang et al., 2024): a language model that says + or - at the tag after a step."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer

from rsd_engine.models.decoders.llama import MISTRAL
from rsd_engine.models.reward.family import (
    PrmFormat,
    RewardFamily,
    encode,
    leading_ids,
    named,
    one_token,
)
from rsd_engine.models.reward.head_tensors import LM_HEAD, two_words
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import ValueHead


def _format(tokenizer: Any) -> PrmFormat:
    """`question step ки`, a newline, `step ки`, and so on, as one text; no chat template.

    The reward is read at the tag `ки`, not before it.
    """
    encoder = plain_encoder(tokenizer)
    newline = encode(encoder, "\n")  # after what the tokenizer puts before every text
    return PrmFormat(
        before=leading_ids(tokenizer),
        prefix="",
        suffix="",
        after=(),
        before_step=tuple(newline[-1:]),
        separator_ids=(one_token(tokenizer, "ки"),),
        encoder=encoder,
        encode_step=partial(_encode_step, encoder, len(newline)),
    )


def _encode_step(encoder: Tokenizer, newline: int, text: str, first: bool) -> list[int]:
    """A step as it stands in the one text: after a newline, the first one after a space."""
    before = "\n " if first else "\n"
    return encode(encoder, before + text.strip())[newline:]


MATH_SHEPHERD = RewardFamily(
    name="Math-Shepherd",
    architectures={"MistralForCausalLM": MISTRAL},
    head=ValueHead,
    head_tensors=LM_HEAD,
    head_dtype=torch.float32,
    format=_format,
    recognise=named("math-shepherd"),
    prepare=two_words("+", "-"),
    reads_lm_head=True,
    threshold=0.5,  # from there on + is the likelier of the two
)
