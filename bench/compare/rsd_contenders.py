"""Every way to answer the demo family's problems that is compared: all take questions, give texts.

This engine with and without speculation, the paper's arrangement in three kinds, and what
transformers offers for the target alone. Greedy, fp32, the same limits everywhere.
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
from bench.lib import timing
from rsd_engine import Engine, RequestOutput, SamplingParams, Threshold
from rsd_engine.roofline.measured import read_bandwidth

THRESHOLD, MAX_TOKENS = 0.7, 256
RSD, TARGET = "ours, RSD", "ours, target alone"
PAPER = {kind: f"paper's arrangement, {kind}" for kind in CALL_KINDS}
PLAIN, ASSISTED = "transformers, target alone", "transformers, target assisted by the draft"

Solve = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class RsdContenders:
    """All ways, loaded.

    Attributes:
        batch: questions that are answered at once.
    """

    engine: Engine
    arrangements: dict[str, PaperArrangement]
    batch: int

    @classmethod
    def load(cls, models: Models, batch: int) -> RsdContenders:
        engine = Engine(
            models.draft, models.target, models.prm, dtype="float32", device="cpu",
            max_num_seqs=batch, policy=Threshold(THRESHOLD),
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
        """The gate: the paper's arrangement, in every kind, gives what this engine gives.

        Raises:
            timing.Mismatch: it does not.
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

    def bound(self, questions: Sequence[str]) -> float:
        """Seconds below which no RSD of these answers can get here.

        In each batch the longest answer's passes come one after another and each reads its
        model's weights once; and all rows must be multiplied. The greater of the two counts.
        """
        reads, speed = self._read_seconds(), timing.product_speed()
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
        """To read the weights of each model once, as fast as as many bytes are read in a loop."""
        models, cpu = self.engine.parts.models.models, torch.device("cpu")
        sizes = {role.name.lower(): model.weight_bytes for role, model in models.items()}
        return {role: size / read_bandwidth(cpu, size, runs=50) for role, size in sizes.items()}

    def _arranged(self, arrangement: PaperArrangement, questions: Sequence[str]) -> list[Answer]:
        return [a for some in self._batches(questions) for a in arrangement.solve(some)]

    def _arranged_texts(self, arrangement: PaperArrangement, questions: Sequence[str]) -> list[str]:
        return [answer.written for answer in self._arranged(arrangement, questions)]

    def _generated(self, questions: Sequence[str], *, assistant: Any) -> list[str]:
        """The target by `generate`, alone or assisted: the tokens of the target alone."""
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
