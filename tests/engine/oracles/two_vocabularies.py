"""Reward-guided speculative decoding with two vocabularies, as one would write it at first.

Each writer is called alone, on ids of its own: its prompt, then every kept step, as it wrote it or
as its tokenizer reads the step's text. Everything else is as in `naive`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from rsd_engine.steps.policies import Policy
from rsd_kernels.philox.twin import DrawKey, uniform
from rsd_kernels.state.enums import Purpose, Role
from tests.draw_oracle import Place, distribution, draw
from tests.engine.oracles.naive import (
    NaiveModels,
    NaiveStep,
    reward_of,
    text_of,
    write_step,
)

_OTHER = {"draft": "target", "target": "draft"}


@dataclass(frozen=True)
class TwoVocabularies:
    """The models with the tokenizer of each writer."""

    models: NaiveModels  # its tokenizer is the target's
    draft_tokenizer: PreTrainedTokenizerFast

    @classmethod
    def load(cls, draft: Path, target: Path, prm: Path) -> TwoVocabularies:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(draft)
        return cls(NaiveModels.load(draft, target, prm), tokenizer)

    def tokenizer(self, writer: str) -> PreTrainedTokenizerFast:
        return self.draft_tokenizer if writer == "draft" else self.models.tokenizer


@dataclass(frozen=True)
class Asked:
    """What one request asks for."""

    prompts: dict[str, list[int]]  # of each writer
    question: str
    policy: Policy
    max_tokens: int
    seed: int = 5
    temperature: float = 0.0
    min_tokens: int = 0
    capacity: int = 512  # of each context


class Naive:
    """One request, from its prompts to its end.

    Attributes:
        contexts: the ids that each writer has read or written.
        steps: the kept ones.
        read: how many ids of its context each writer has read.
    """

    def __init__(self, two: TwoVocabularies, asked: Asked) -> None:
        self.contexts = {writer: list(ids) for writer, ids in asked.prompts.items()}
        self.steps = list[NaiveStep]()
        self.read = {"draft": 0, "target": 0}
        self._two, self._asked, self._written = two, asked, 0

    @torch.no_grad()
    def run(self) -> Naive:
        while self._step():
            pass
        return self

    def _step(self) -> bool:
        """Decides one step; whether the output goes on."""
        two, asked, writer = self._two, self._asked, "draft"
        ids = self._write(writer)
        if not ids:
            return False
        text = text_of(two.draft_tokenizer, ids)
        kept = [step.text for step in self.steps]
        reward, rejected = reward_of(two.models, asked.question, [*kept, text]), None
        position = len(self.contexts["draft"]) + len(ids)
        u = uniform(DrawKey(asked.seed, 0, len(kept), position, Purpose.ACCEPT))
        if u >= asked.policy.weight(reward):
            rejected, writer = text, "target"
            ids = self._write(writer)
            if not ids:
                return False
            text = text_of(two.models.tokenizer, ids)
        other = _OTHER[writer]
        self.contexts[writer] += ids
        self.contexts[other] += two.tokenizer(other).encode(text, add_special_tokens=False)
        self._written += len(ids)
        self.steps.append(NaiveStep(text, writer, reward, rejected))
        ended = ids[-1] == two.tokenizer(writer).eos_token_id
        full = len(self.contexts[writer]) >= asked.capacity
        return not (ended or full) and self._written < asked.max_tokens

    def _write(self, writer: str) -> list[int]:
        """A step after the writer's context; nothing if that is full."""
        asked, context = self._asked, self.contexts[writer]
        room = min(asked.max_tokens - self._written, asked.capacity - len(context))
        model, tokenizer = getattr(self._two.models, writer), self._two.tokenizer(writer)

        def choose(logits: torch.Tensor, written: int) -> int:
            if self._written + written < asked.min_tokens:
                logits[tokenizer.eos_token_id] = -torch.inf
            if asked.temperature == 0:
                return int(logits.argmax())
            return self._draw(logits, Role[writer.upper()], len(context) + written)

        step = write_step(model, tokenizer, context, room, choose)
        self.read[writer] = max(self.read[writer], len(context) + len(step) - 1)
        return step

    def _draw(self, logits: torch.Tensor, role: Role, position: int) -> int:
        place = Place(self._asked.seed, 0, len(self.steps), position, role)
        return draw(distribution(logits.tolist(), self._asked.temperature), place).token
