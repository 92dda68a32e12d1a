"""What one family of process reward models says of itself: its head, its prompt, its separator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from rsd_engine.models.decoders.family import DecoderFamily
from rsd_engine.steps.vocabulary import backend_of
from rsd_kernels.reward.heads import RewardHead


@dataclass(frozen=True)
class PrmFormat:
    """A PRM's prompt around the bare question, and the ids after every step.

    The question is plain text: a special token written out in it is read as its letters.
    """

    before: tuple[int, ...]  # ids before the segment that holds the question
    prefix: str  # text tokenised together with the question, before it
    suffix: str  # and after it
    after: tuple[int, ...]  # ids after that segment
    # They follow each step; the reward is read at the last, with which the PRM's pass ends. A PRM
    # that reads it before that is not supported: the row may belong to an earlier pass.
    separator_ids: tuple[int, ...]
    encoder: Tokenizer = field(repr=False, compare=False)  # special tokens are letters to it
    before_step: tuple[int, ...] = ()  # ids in front of every step but the first
    num_transient: int = 0  # of the last separator ids: they leave the context once they are read

    @property
    def step_ids(self) -> int:
        """Ids that a kept step adds to the context beside its own."""
        return len(self.before_step) + len(self.separator_ids) - self.num_transient

    def prompt_ids(self, question: str) -> list[int]:
        """The PRM's context before the first step."""
        segment = encode(self.encoder, self.prefix + question + self.suffix)
        return [*self.before, *segment, *self.after]


@dataclass(frozen=True)
class RewardFamily:
    """A decoder with a reward head, and how it reads a solution."""

    name: str  # as its authors call it
    architectures: Mapping[str, DecoderFamily]  # in config.json -> the decoder below the head
    head: type[RewardHead]
    head_tensors: Mapping[str, str]  # tensor of the checkpoint -> field of `head`
    head_dtype: torch.dtype | None  # in which the head is computed; None: that of the decoder
    # From the PRM's fast tokenizer. Raises ValueError if that lacks a token of the format.
    format: Callable[[Any], PrmFormat]
    threshold: float  # a step is kept from this reward on, where the user names no policy

    def allocate_head(self, norm_weight: Tensor, eps: float) -> RewardHead:
        """An unfilled head after the decoder's final norm, on the norm's device."""
        return self.head.allocate(norm_weight, eps, self.head_dtype or norm_weight.dtype)

    def places(self, head: RewardHead) -> dict[str, Tensor]:
        """Where each tensor of the checkpoint's head goes."""
        return {name: getattr(head, target) for name, target in self.head_tensors.items()}


def encode(encoder: Tokenizer, text: str) -> list[int]:
    """The ids of `text` alone, without the special tokens of a template."""
    return encoder.encode(text, add_special_tokens=False).ids


def token_id(tokenizer: Any, token: str) -> int:
    """The id of a special token.

    Raises:
        ValueError: the tokenizer does not have it.
    """
    found = backend_of(tokenizer).token_to_id(token)
    if found is None:
        raise ValueError(f"prm tokenizer: has no token {token!r}, which this PRM's format needs")
    return found
