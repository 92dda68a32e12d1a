"""What one family of process reward models says of itself: its head, its prompt, its separator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from rsd_engine.models.checkpoints.base import Checkpoint, StoredTensor
from rsd_engine.models.decoders.family import DecoderFamily
from rsd_engine.steps.vocabulary import backend_of, plain_encoder
from rsd_kernels.reward.heads import RewardHead, ValueHead


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
    as_written: bool = False  # the context is the writer's own: its prompt, steps with delimiters
    # Ids of a step by its text and whether it is the first, where it is tokenised together with
    # what stands around it: such a PRM goes by way of text. None: a step is tokenised alone.
    encode_step: Callable[[str, bool], list[int]] | None = field(
        default=None, repr=False, compare=False
    )
    trims_question: bool = False  # of spaces in front, as chat templates do

    @property
    def step_ids(self) -> int:
        """Ids that a kept step adds to the context beside its own."""
        return len(self.before_step) + len(self.separator_ids) - self.num_transient

    def prompt_ids(self, question: str) -> list[int]:
        """The PRM's context before the first step."""
        question = question.lstrip() if self.trims_question else question
        segment = encode(self.encoder, self.prefix + question + self.suffix)
        return [*self.before, *segment, *self.after]

    def step_tokens(self, text: str, is_first: bool) -> list[int]:
        """A step's ids, with those that stand before and after it."""
        before = () if is_first else self.before_step
        ids = self.encode_step(text, is_first) if self.encode_step else encode(self.encoder, text)
        return [*before, *ids, *self.separator_ids]


Tensors = Mapping[str, StoredTensor]
"""Tensors of a checkpoint by their names."""


def _as_stored(stored: Tensors, tokenizer: Callable[[], Any]) -> Tensors:
    del tokenizer
    return stored


@dataclass(frozen=True)
class RewardFamily:
    """A decoder with a reward head, and how it reads a solution."""

    name: str  # as its authors call it; in any case what `prm_format` calls it
    architectures: Mapping[str, DecoderFamily]  # in config.json -> the decoder below the head
    head: type[RewardHead]
    head_tensors: Mapping[str, str]  # tensor of the checkpoint -> field of `head`
    head_dtype: torch.dtype | None  # in which the head is computed; None: that of the decoder
    # From the PRM's fast tokenizer. Raises ValueError if that lacks a token of the format.
    format: Callable[[Any], PrmFormat]
    threshold: float  # a step is kept from this reward on, where the user names no policy
    # Whether a checkpoint of one of the architectures is of this family, where they do not tell by
    # themselves. Asked before the families whose architectures do.
    recognise: Callable[[Checkpoint], bool] | None = None
    # The checkpoint's tensors, the head's under the names of `head_tensors`, and what loads the
    # tokenizer, to look up rows of the vocabulary. Nothing is read before the weights are.
    prepare: Callable[[Tensors, Callable[[], Any]], Tensors] = _as_stored
    # Fields of config.json -> further arguments of the head's `allocate`. Raises ValueError.
    head_sizes: Callable[[Mapping[str, Any]], dict[str, int]] = lambda raw: {}
    reads_lm_head: bool = False  # the head is made of rows of the LM head, which logits come from
    reward_range: tuple[float, float] = (0.0, 1.0)
    # Its separator is what the steps of a solution are split by, not a token of its own.
    follows_delimiters: bool = False

    def allocate_head(
        self, norm_weight: Tensor, eps: float, raw: Mapping[str, Any] | None = None
    ) -> RewardHead:
        """An unfilled head after the decoder's final norm, on the norm's device.

        Args:
            norm_weight: [hidden] of the final norm.
            eps: of the final norm.
            raw: config.json, for families with sizes of their own.
        """
        dtype = self.head_dtype or norm_weight.dtype
        head = self.head.allocate(norm_weight, eps, dtype, **self.head_sizes(raw or {}))
        if isinstance(head, ValueHead):
            low, high = self.reward_range
            return replace(head, scale=high - low, offset=low)
        return head

    def places(self, head: RewardHead) -> dict[str, Tensor]:
        """Where each tensor of the checkpoint's head goes."""
        return {name: getattr(head, target) for name, target in self.head_tensors.items()}


def named(*parts: str) -> Callable[[Checkpoint], bool]:
    """Recognises checkpoints by a part of their name, in small letters.

    That is the folder or hub id, or `_name_or_path` in config.json.
    """

    def recognise(checkpoint: Checkpoint) -> bool:
        path = Path(checkpoint.source)
        if path.parent.name == "snapshots":  # of a hub cache
            path = path.parent.parent
        names = f"{path.name}\n{checkpoint.config().get('_name_or_path') or ''}".lower()
        return any(part in names for part in parts)

    return recognise


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


def spelled(tokenizer: Any, *parts: str) -> tuple[int, ...]:
    """The ids of special tokens, written `<|..|>`, and of the texts between them.

    Raises:
        ValueError: the tokenizer lacks a special token.
    """
    encoder = plain_encoder(tokenizer)
    ids = (
        [token_id(tokenizer, part)] if part.startswith("<|") else encode(encoder, part)
        for part in parts
    )
    return tuple(i for of_part in ids for i in of_part)


def leading_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before every text: its bos, or nothing."""
    encoder = plain_encoder(tokenizer)  # it does not pad
    alone, whole = (encoder.encode("a", add_special_tokens=s).ids for s in (False, True))
    return tuple(whole[: whole.index(alone[0])])


def one_token(tokenizer: Any, text: str) -> int:
    """The id of the one token that `text` is.

    Raises:
        ValueError: it is none, or several.
    """
    found = plain_encoder(tokenizer).encode(text, add_special_tokens=False)
    unknown = getattr(backend_of(tokenizer).model, "unk_token", None)
    if len(found.ids) != 1 or found.tokens[0] == unknown:
        raise ValueError(
            f"prm tokenizer: {text!r} must be one token, for this PRM's format; it is "
            f"{found.tokens}: give a checkpoint with the tokenizer of its family"
        )
    return found.ids[0]
