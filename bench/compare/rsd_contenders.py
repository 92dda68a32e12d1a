"""The contenders that answer problems of the demo family: each takes questions and returns texts.

They are this engine with and without speculation, the paper's arrangement in three kinds, and what
transformers offers for the target alone. All are greedy, in fp32, with the same limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from bench.compare.effect import Models
from bench.compare.paper.agreement import Agreement, require_same_answers
from bench.compare.paper.arrangement import CALL_KINDS, Answer, Limits, PaperArrangement
from bench.lib.rates import matrix_rate
from rsd_engine import Engine, RequestOutput, SamplingParams, Threshold
from rsd_engine.roofline.measured import read_bandwidth

THRESHOLD, MAX_TOKENS = 0.7, 256
RSD, TARGET = "ours, RSD", "ours, target alone"
PAPER = {kind: f"paper's arrangement, {kind}" for kind in CALL_KINDS}
PLAIN, ASSISTED = "transformers, target alone", "transformers, target assisted by the draft"

CPU = torch.device("cpu")

Solve = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class RsdContenders:
    """All contenders, loaded.

    Attributes:
        batch: questions answered at once.
    """

    engine: Engine
    arrangements: dict[str, PaperArrangement]
    batch: int

    @classmethod
    def load(cls, models: Models, batch: int) -> RsdContenders:
        engine = Engine(
            models.draft, models.target, models.prm, dtype="float32", device="cpu",
            max_num_seqs=batch, policy=Threshold(THRESHOLD), enable_prefix_caching=False,
        )  # fmt: skip
        arrangements = {
            PAPER[kind]: PaperArrangement(
                models.draft, models.target, models.prm, threshold=THRESHOLD, calls=kind,
                limits=Limits(MAX_TOKENS),
            )
            for kind in CALL_KINDS
        }  # fmt: skip
        return cls(engine, arrangements, batch)

    @property
    def arrangement(self) -> PaperArrangement:
        return next(iter(self.arrangements.values()))

    def solvers(self) -> dict[str, Solve]:
        """Ours first; assisted generation only takes one question at a time."""
        found: dict[str, Solve] = {
            RSD: lambda questions: _texts(self.ours(questions, "rsd")),
            TARGET: lambda questions: _texts(self.ours(questions, "target")),
        }
        for name, arrangement in self.arrangements.items():
            found[name] = partial(self._arranged_texts, arrangement)
        found[PLAIN] = partial(self._generated, assistant=None)
        if self.batch == 1:
            found[ASSISTED] = partial(self._generated, assistant=self.arrangement.draft.model)
        return found

    def require_agreement(self, questions: Sequence[str]) -> dict[str, Agreement]:
        """The gate: every kind of the paper's arrangement must answer as this engine does.

        Raises:
            Mismatch: it does not.
        """
        ours = [result.outputs[0] for result in self.ours(questions, "rsd")]
        return {
            name: require_same_answers(ours, self._arranged(arrangement, questions), arrangement)
            for name, arrangement in self.arrangements.items()
        }

    def ours(self, questions: Sequence[str], mode: Literal["rsd", "target"]) -> list[RequestOutput]:
        """This engine's answers."""
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=0, mode=mode)
        results = []
        for some in self._batches(questions):
            chats = [[{"role": "user", "content": question}] for question in some]
            results += self.engine.chat(chats, params, use_tqdm=False)
        return results

    def least_seconds(self, questions: Sequence[str]) -> float:
        """Least seconds in which any RSD can write these answers on this machine.

        In each batch the passes of the longest answer follow one another, and each reads the
        weights of its model once. Also, all rows must be multiplied. The greater time counts.
        """
        reads, speed = self._read_seconds(), matrix_rate(CPU, torch.float32)
        results = iter(self.ours(questions, "rsd"))
        seconds = 0.0
        for some in self._batches(questions):
            metrics = [next(results).metrics for _ in some]
            reading = max(
                sum(getattr(m, role).passes * read for role, read in reads.items()) for m in metrics
            )
            seconds += max(reading, sum(m.flops.all for m in metrics) / speed)
        return seconds

    def close(self) -> None:
        self.engine.close()

    def _read_seconds(self) -> dict[str, float]:
        """Seconds to read the weights of each model once: those to read as many bytes in a loop."""
        models = self.engine.parts.models.models
        sizes = {role.name.lower(): model.weight_bytes for role, model in models.items()}
        return {role: size / read_bandwidth(CPU, size, runs=50) for role, size in sizes.items()}

    def _arranged(self, arrangement: PaperArrangement, questions: Sequence[str]) -> list[Answer]:
        return [a for some in self._batches(questions) for a in arrangement.solve(some)]

    def _arranged_texts(self, arrangement: PaperArrangement, questions: Sequence[str]) -> list[str]:
        return [answer.written for answer in self._arranged(arrangement, questions)]

    def _generated(self, questions: Sequence[str], *, assistant: Any) -> list[str]:
        """The target with transformers' `generate`, alone or assisted by the draft."""
        return [
            text
            for some in self._batches(questions)
            for text in _generate(self.arrangement, some, assistant)
        ]

    def _batches(self, questions: Sequence[str]) -> list[Sequence[str]]:
        return [questions[i : i + self.batch] for i in range(0, len(questions), self.batch)]


def _texts(results: Sequence[RequestOutput]) -> list[str]:
    return [result.outputs[0].text for result in results]


@torch.inference_mode()
def _generate(paper: PaperArrangement, questions: Sequence[str], assistant: Any) -> list[str]:
    tokenizer, model = paper.target.tokenizer, paper.target.model
    batch = tokenizer(
        [paper.prompt(question) for question in questions], add_special_tokens=False,
        padding=True, padding_side="left", return_tensors="pt",
    )  # fmt: skip
    written = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        pad_token_id=0,
        assistant_model=assistant,
    )
    new = written[:, batch["input_ids"].shape[1] :]
    return list(tokenizer.batch_decode(new, skip_special_tokens=True))
