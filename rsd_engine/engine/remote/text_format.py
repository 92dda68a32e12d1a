"""A PRM's context as text, for a server that tokenises it: ids below 256 are bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsd_engine.models.reward.family import PrmFormat, RewardFamily
from rsd_engine.steps.policies import Threshold
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import ValueHead

_END = 256  # ends the question and every step
BYTES_PER_TOKEN = 8  # more than tokens of text have on average


@dataclass(frozen=True)
class TextFormat(PrmFormat):
    """The bytes of question and steps."""

    def prompt_ids(self, question: str) -> list[int]:
        return [*question.encode("utf-8"), _END]


def text_family(tokenizer: Any) -> RewardFamily:
    """What stands for the PRM of `rsd serve`, whose family only the server knows.

    Args:
        tokenizer: of any writer.
    """
    form = TextFormat(
        before=(), prefix="", suffix="", after=(),
        separator_ids=(_END,),
        encoder=plain_encoder(tokenizer),
        encode_step=lambda text, is_first: list(text.encode("utf-8")),
    )  # fmt: skip
    return RewardFamily(
        name="the PRM of rsd serve",
        architectures={},
        head=ValueHead,
        head_tensors={},
        head_dtype=None,
        format=lambda tokenizer: form,
        threshold=Threshold().threshold,
    )


def texts_of(ids: Sequence[int]) -> list[str]:
    """The question and the steps of a context; its last id ends a step."""
    parts: list[list[int]] = [[]]
    for value in ids[:-1]:
        if value == _END:
            parts.append([])
        else:
            parts[-1].append(value)
    return [bytes(part).decode("utf-8") for part in parts]
