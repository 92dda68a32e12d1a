"""A format of the user's own for a PRM: a template of its prompt, and what follows every step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rsd_engine.arguments import check_number, check_text
from rsd_engine.models.reward.family import PrmFormat, RewardFamily, encode
from rsd_engine.steps.vocabulary import backend_of, plain_encoder

QUESTION = "{question}"


@dataclass(frozen=True)
class PrmTemplate:
    """How a PRM is fed, for `Engine(prm_format=...)`.

    >>> PrmTemplate("<|im_start|>user\\n{question}<|im_end|>\\n", separator="<extra_0>")

    Args:
        prompt: what the PRM reads before the first step, with {question} in it once. A special
            token that is written in it is that token; one in the question is its letters.
        separator: what follows every step in place of its delimiter: a token, or text of several,
            of which the reward is read at the last.
        family: by whose head the reward is read, one of the names of `prm_format`; None takes what
            the checkpoint tells.
        threshold: the reward from which a step is kept, where no policy is named; None takes the
            family's.
        name: what the log calls it.

    Raises:
        ValueError: an argument is not allowed.
    """

    prompt: str
    separator: str
    family: str | None = None
    threshold: float | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        for name in ("prompt", "separator", "name"):
            check_text(f"prm_format: {name}", getattr(self, name))
        if self.prompt.count(QUESTION) != 1:
            raise ValueError(
                f"prm_format: prompt must have {QUESTION} in it once, got {self.prompt!r}"
            )
        if not self.separator:
            raise ValueError("prm_format: separator is empty; the reward is read at its last token")
        if self.family is not None:
            check_text("prm_format: family", self.family)
        if self.threshold is not None:
            check_number("prm_format: threshold", self.threshold, -1e9, 1e9, "a finite number")

    def applied_to(self, family: RewardFamily) -> RewardFamily:
        """The family, fed in this way."""
        return replace(
            family,
            name=f"{self.name} ({family.name})",
            format=self._format,
            threshold=family.threshold if self.threshold is None else float(self.threshold),
            follows_delimiters=False,
        )

    def _format(self, tokenizer: Any) -> PrmFormat:
        """The segment with the question goes from one special token of the prompt to the next."""
        pieces = _pieces(tokenizer, self.prompt)
        at = next(i for i, piece in enumerate(pieces) if QUESTION in piece)
        prefix, _, suffix = pieces[at].partition(QUESTION)
        return PrmFormat(
            before=_ids(tokenizer, pieces[:at]),
            prefix=prefix,
            suffix=suffix,
            after=_ids(tokenizer, pieces[at + 1 :]),
            separator_ids=separator_ids(tokenizer, self.separator),
            encoder=plain_encoder(tokenizer),
        )


def separator_ids(tokenizer: Any, separator: str) -> tuple[int, ...]:
    """The ids of a separator: an added token, or the tokens of its text alone.

    Raises:
        ValueError: the tokenizer cannot write it.
    """
    ids = _ids(tokenizer, _pieces(tokenizer, separator))
    unknown = getattr(backend_of(tokenizer).model, "unk_token", None)
    if not ids or (unknown and backend_of(tokenizer).token_to_id(unknown) in ids):
        raise ValueError(
            f"prm_separator={separator!r} is no text of the PRM's tokens; give a token of its "
            "tokenizer, or text that it can write"
        )
    return ids


def _pieces(tokenizer: Any, text: str) -> list[str]:
    """`text`, cut into the added tokens written in it and what stands between them."""
    added = sorted(_added(tokenizer), key=len, reverse=True)
    if not added:
        return [text]
    return [p for p in re.split(f"({'|'.join(map(re.escape, added))})", text) if p]


def _ids(tokenizer: Any, pieces: Sequence[str]) -> tuple[int, ...]:
    added, encoder = _added(tokenizer), plain_encoder(tokenizer)
    found = ([added[p]] if p in added else encode(encoder, p) for p in pieces)
    return tuple(i for ids in found for i in ids)


def _added(tokenizer: Any) -> dict[str, int]:
    """The tokens that are matched before the model runs, with their ids."""
    return {t.content: i for i, t in backend_of(tokenizer).get_added_tokens_decoder().items()}
