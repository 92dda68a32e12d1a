"""The paper's arrangement, asked whether it would have written what is there already.

Its loop is greedy and passes text, so every step follows from the text before it. That text is
tokenised anew, and one forward over it and a step's tokens tells whether each token is the
likeliest. So an answer is checked in a fraction of the time that it takes to write it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from bench.compare.paper.arrangement import DELIMITER
from bench.compare.paper.reward_model import EagerPrm
from bench.compare.paper.writers import Loaded
from rsd_engine import CompletionOutput

REWARD_ERROR = 1e-3


@dataclass(frozen=True)
class Departure:
    """Where an answer is not what the arrangement would have written.

    Attributes:
        step: which one.
        what: for people.
        gap: of the two logits, or of the reward and the threshold.
    """

    step: int
    what: str
    gap: float


class TextWriter:
    """A model that reads text; keys and values of the ids that two texts share are kept."""

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self._ids: list[int] = []
        self._cache = DynamicCache(config=self.model.config)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def departs(self, before: str, tokens: Sequence[int]) -> tuple[str, float] | None:
        """Whether greedy decoding after a text writes other tokens.

        Returns:
            (what it writes, and by how much this is likelier), or None.
        """
        logits = self._logits([*self.encode(before), *tokens[:-1]], len(tokens))
        for at, likeliest in enumerate(logits.argmax(-1).tolist()):
            if likeliest == tokens[at]:
                continue
            if _cut(self._text([*tokens[:at], likeliest])) == self._text(tokens):
                return None  # that token ran past the delimiter, and what remains of it is here
            what = f"{self._text([likeliest])!r} in place of {self._text([tokens[at]])!r}"
            return what, float(logits[at, likeliest] - logits[at, tokens[at]])
        return None

    @torch.inference_mode()
    def _logits(self, ids: list[int], count: int) -> Tensor:  # -> [count, vocabulary]
        """What comes after each of the last `count` ids."""
        pairs = enumerate(zip(ids, self._ids, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(ids), len(self._ids)))
        shared = min(shared, len(ids) - count)
        if shared < len(self._ids):
            self._cache.crop(shared - len(self._ids))  # negative: so many off the end
        out = self.model(
            input_ids=torch.tensor([ids[shared:]]), past_key_values=self._cache, use_cache=True,
            logits_to_keep=count,
        )  # fmt: skip
        self._ids = ids
        return out.logits[0, :, : len(self.tokenizer)]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class Replay:
    """The three models of the arrangement.

    Attributes:
        threshold: a step is kept if its reward reaches it.
    """

    draft: TextWriter
    target: TextWriter
    prm: EagerPrm
    threshold: float

    def departure(self, prompt: str, question: str, answer: CompletionOutput) -> Departure | None:
        """The first place where the arrangement does otherwise; None if there is none."""
        kept: list[str] = []
        for number, step in enumerate(answer.steps):
            before = prompt + "".join(text + DELIMITER for text in kept)
            drafted = step.rejected or step
            written = [(self.draft, drafted.token_ids)]
            if step.rejected:
                written.append((self.target, step.token_ids))
            for writer, tokens in written:
                found = writer.departs(before, tokens)
                if found is not None:
                    return Departure(number, *found)
            last = number + 1 == len(answer.steps)
            if last and answer.finish_reason == "length":
                break  # the two programs count tokens differently
            [reward] = self.prm.score([question], [[*kept, drafted.text.removesuffix(DELIMITER)]])
            assert drafted.reward is not None
            if abs(reward - drafted.reward) > REWARD_ERROR:
                return Departure(number, f"reward {reward}, ours {drafted.reward}", torch.inf)
            if (reward >= self.threshold) != (step.rejected is None):
                what = f"reward {reward}, source {step.source}"
                return Departure(number, what, abs(reward - self.threshold))
            kept.append(step.text.removesuffix(DELIMITER))
        return None


def _cut(text: str) -> str:
    before, delimiter, _ = text.partition(DELIMITER)
    return before + delimiter
