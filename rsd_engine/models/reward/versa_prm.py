"""VersaPRM (Zeng et al., 2025): a language model that says + or - at the end of a step."""

from __future__ import annotations

from typing import Any

import torch

from rsd_engine.models.decoders.llama import LLAMA
from rsd_engine.models.decoders.qwen import QWEN2
from rsd_engine.models.reward.family import (
    PrmFormat,
    RewardFamily,
    leading_ids,
    named,
    one_token,
)
from rsd_engine.models.reward.head_tensors import LM_HEAD, two_words
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import ValueHead


def _format(tokenizer: Any) -> PrmFormat:
    """bos, question, a space and a blank line; a space and four newlines after every step.

    The authors tokenise all of it as one text. A step alone is the same, for the space keeps it
    apart, unless it ends or begins with blanks of its own.
    """
    return PrmFormat(
        before=leading_ids(tokenizer),
        prefix="",
        suffix=" \n\n",
        after=(),
        separator_ids=(one_token(tokenizer, " \n\n\n\n"),),
        encoder=plain_encoder(tokenizer),
    )


VERSA_PRM = RewardFamily(
    name="VersaPRM",
    architectures={"LlamaForCausalLM": LLAMA, "Qwen2ForCausalLM": QWEN2},
    head=ValueHead,
    head_tensors=LM_HEAD,
    head_dtype=torch.float32,
    format=_format,
    recognise=named("versaprm", "llama-prm800k", "qwen-prm800k"),
    prepare=two_words("+", "-"),
    reads_lm_head=True,
    threshold=0.5,  # from there on + is the likelier of the two
)
