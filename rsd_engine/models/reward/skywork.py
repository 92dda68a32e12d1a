"""Skywork-o1-Open-PRM (He et al., 2024), as the RSD authors feed it."""

from __future__ import annotations

from typing import Any

import torch

from rsd_engine.models.decoders.qwen import QWEN2
from rsd_engine.models.reward.family import PrmFormat, RewardFamily, encode, token_id
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import ValueHead

ARCHITECTURE = "Qwen2ForPrmModel"


def _format(tokenizer: Any) -> PrmFormat:
    bos = getattr(tokenizer, "bos_token", None) or "<|im_start|>"
    return newline_format(tokenizer, (token_id(tokenizer, str(bos)),))


def newline_format(tokenizer: Any, bos: tuple[int, ...]) -> PrmFormat:
    """bos, question, newline; no chat template; a blank line after every step.

    Question and newline are one text, for the newline often merges with the question's last token.
    """
    encoder = plain_encoder(tokenizer)
    return PrmFormat(
        before=bos,
        prefix="",
        suffix="\n",
        after=(),
        separator_ids=(encode(encoder, "\n\n")[-1],),
        encoder=encoder,
    )


SKYWORK = RewardFamily(
    name="Skywork-o1-Open-PRM",
    architectures={ARCHITECTURE: QWEN2},
    head=ValueHead,  # in the layout of trl's value head; its dropout is for training only
    head_tensors={"v_head.summary.weight": "weight", "v_head.summary.bias": "bias"},
    head_dtype=torch.float32,  # as in the authors' code, whatever the decoder computes in
    format=_format,
    threshold=0.7,
    follows_delimiters=True,  # its authors split solutions by a newline, RSD's by a blank line
)
