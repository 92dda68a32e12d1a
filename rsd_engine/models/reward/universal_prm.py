"""Universal-PRM-7B (Tan et al., 2025): reads end-of-text after every prefix of a solution."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from rsd_engine.models.decoders.qwen import QWEN2
from rsd_engine.models.reward.family import PrmFormat, encode, named
from rsd_engine.models.reward.head_tensors import one_output
from rsd_engine.models.reward.qwen_math_prm import QWEN_MATH_PRM, chat_format

_SYSTEM = "You are a helpful assistant."
_NO_ANSWER = "\n\n###\n\nThe reference answer is: There is no reference answer for this question."


def _format(tokenizer: Any) -> PrmFormat:
    """ChatML, then the steps with a blank line after each, as one text, then end-of-text.

    The authors read every prefix of a solution anew. All but end-of-text stays the same from one to
    the next, so that it alone leaves the context again.
    """
    end = str(getattr(tokenizer, "eos_token", None) or "<|im_end|>")
    made = chat_format(tokenizer, system=_SYSTEM, separator=end, after_question=_NO_ANSWER)
    encode_step = partial(_encode_step, made.encoder)
    return replace(made, num_transient=1, encode_step=encode_step)


def _encode_step(encoder: Tokenizer, text: str, first: bool) -> list[int]:
    del first
    return encode(encoder, text + "\n\n")


UNIVERSAL_PRM = replace(
    QWEN_MATH_PRM,
    name="Universal-PRM",
    architectures={"Qwen2ForRewardModel": QWEN2},
    format=_format,
    recognise=named("universal-prm"),  # Qwen2.5-Math-RM, which scores no steps, has it too
    prepare=one_output,
    threshold=0.5,  # the middle of its range
)
