"""The demo family's problems as a task of lm-evaluation-harness, checked as `bench.effect` does."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict

from rsd_engine.demo.problems import extract_answer, generate


def load(problems: int = 500, **_: Any) -> DatasetDict:
    """Held-out problems of seed 0, those of `bench.effect`; `problems` comes by `metadata`."""
    found = generate(0, "test", problems)
    rows = [{"question": p.question, "answer": p.answer} for p in found]
    return DatasetDict(test=Dataset.from_list(rows))


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last box of the output holds the answer."""
    return {"exact_match": float(extract_answer(results[0]) == doc["answer"])}
