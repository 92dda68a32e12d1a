"""Ways to answer the same questions: this engine with guesses from each source, and transformers.

All are greedy and in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.compare.effect import Models
from rsd_engine import Engine, RequestOutput, SamplingParams, Threshold
from rsd_engine.sampling_params import ModeName, SpeculateName

THRESHOLD = 0.7
NONE, ASSISTED, PLAIN = "none", "assisted by the draft", "none"
Way = tuple[SpeculateName | None, int | None]  # speculate, num_guesses
WAYS: dict[ModeName, dict[str, Way]] = {
    "target": {
        NONE: (None, None),
        "draft, 1": ("draft", 1),
        "draft, 2": ("draft", 2),
        "draft, 4": ("draft", 4),
        "draft": ("draft", None),
        "n-gram": ("ngram", None),
    },
    "rsd": {
        NONE: (None, None),
        "rejected": ("rejected", None),
        "rejected, draft": ("rejected+draft", None),
        "draft": ("draft", None),
    },
}
PICKED: dict[ModeName, str] = {"target": "draft", "rsd": "rejected, draft"}
_GUESSES = 8  # places a slot: the most that the draft guesses where their number is left open

Answers = list[tuple[int, ...]]


@dataclass(frozen=True)
class Ours:
    """This engine.

    Attributes:
        batch: questions answered at once.
        tokens: most of an answer.
    """

    engine: Engine
    batch: int
    tokens: int

    @classmethod
    def load(cls, models: Models, batch: int, tokens: int) -> Ours:
        engine = Engine(
            models.draft, models.target, models.prm, device="cpu", dtype="float32",
            max_num_seqs=batch, max_guesses=_GUESSES * batch, policy=Threshold(THRESHOLD),
            enable_prefix_caching=False,
        )  # fmt: skip
        return cls(engine, batch, tokens)

    def answer(self, questions: Sequence[str], mode: ModeName, way: Way) -> list[RequestOutput]:
        """Its results, `batch` at a time."""
        params = SamplingParams(
            temperature=0.0, max_tokens=self.tokens, seed=0, mode=mode,
            speculate=way[0], num_guesses=way[1],
        )  # fmt: skip
        chats = [[{"role": "user", "content": question}] for question in questions]
        return [
            result
            for start in range(0, len(chats), self.batch)
            for result in self.engine.chat(
                chats[start : start + self.batch], params, use_tqdm=False
            )
        ]


@dataclass(frozen=True)
class Transformers:
    """Draft and target in transformers, for one question at a time."""

    draft: Any
    target: Any
    tokens: int

    @classmethod
    def load(cls, models: Models, tokens: int) -> Transformers:
        opened = partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
        return cls(opened(models.draft).eval(), opened(models.target).eval(), tokens)

    def contenders(self, prompts: Sequence[Sequence[int]]) -> dict[str, Callable[[], Answers]]:
        """The target alone, and assisted: transformers sets the number of its guesses by itself."""
        return {
            PLAIN: partial(self.answer, prompts, None),
            ASSISTED: partial(self.answer, prompts, self.draft),
        }

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Sequence[int]], assistant: Any) -> Answers:
        """The new tokens of every prompt."""
        answers = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            written = self.target.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.tokens,
                do_sample=False, pad_token_id=0, assistant_model=assistant,
            )  # fmt: skip
            answers.append(tuple(written[0, len(prompt) :].tolist()))
        return answers
