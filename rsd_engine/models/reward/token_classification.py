"""PRMs that TRL's PRMTrainer trains: a token classification model of two labels, on any decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from rsd_engine.models.registry import decoder_families
from rsd_engine.models.reward.family import PrmFormat, RewardFamily, encode, named
from rsd_engine.models.reward.head_tensors import two_classes
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import ValueHead


def trl_format(separator: str) -> Callable[[Any], PrmFormat]:
    """bos if there is one, the question, and the separator's ids after every step; no template.

    Each is tokenised alone, and the label is on the separator's last id, as in training.
    """
    return partial(_format, separator)


def _format(separator: str, tokenizer: Any) -> PrmFormat:
    encoder = plain_encoder(tokenizer)
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = tuple(encode(encoder, separator))
    if not ids:
        raise ValueError(
            f"prm tokenizer: its separator {separator!r} has no tokens in it; it needs one at least"
        )
    return PrmFormat(
        before=() if bos is None else (int(bos),),
        prefix="",
        suffix="",
        after=(),
        separator_ids=ids,
        encoder=encoder,
    )


TRL = RewardFamily(
    name="TRL-PRM",
    architectures={
        name.replace("ForCausalLM", "ForTokenClassification"): below
        for name, below in decoder_families().items()
    },
    head=ValueHead,
    head_tensors={"score.weight": "weight", "score.bias": "bias"},
    head_dtype=torch.float32,
    format=trl_format("\n"),  # the trainer's default
    prepare=two_classes,
    threshold=0.5,  # from there on LABEL_1, correct, is the likelier label
)

# HuggingFaceH4's Qwen2.5-Math-1.5B-Instruct-PRM-0.2 and its sisters, by their training recipes.
H4 = replace(
    TRL,
    name="H4-PRM",
    format=trl_format("\n\n"),
    recognise=named("math-1.5b-instruct-prm-0", "math-7b-instruct-prm-0"),
)
