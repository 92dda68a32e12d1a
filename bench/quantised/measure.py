"""Decoding and prompts of several writers on several files, timed in alternation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.lib import timing
from bench.lib.timing import Timing
from bench.quantised import texts
from rsd_engine import Engine

LLAMA_CPP, HALF = "llama.cpp", "BF16"
Writer = Callable[[Sequence[list[int]], int], list[list[int]]]
"""(prompts of ids, new tokens of each) -> the new ids."""
_TEXT = "A library lends books to its readers, and every reader may keep a book for three weeks. "


@dataclass(frozen=True)
class Task:
    """What is written: prompts of so many tokens, and so many new ones for each."""

    prompt_tokens: int
    tokens: int
    sequences: int  # most at once

    @property
    def context(self) -> int:
        return max(self.prompt_tokens + self.tokens, texts.CONTEXT)


@dataclass(frozen=True)
class Speed:
    """One writer on one file and number of sequences.

    `whole` are runs that write all tokens, `first` those that write one.
    """

    file: str
    batch: int
    who: str
    task: Task
    whole: Timing
    first: Timing

    @property
    def decode_rates(self) -> dict[str, float]:
        """Tokens per second after the first of each sequence: median, min, max."""
        tokens, first = self.batch * (self.task.tokens - 1), self.first.median
        return {name: tokens / (tokens / rate - first) for name, rate in self._whole.items()}

    @property
    def _whole(self) -> dict[str, float]:
        """Those tokens per second of whole runs."""
        return self.whole.rates(self.batch * (self.task.tokens - 1))

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second."""
        return self.batch * self.task.prompt_tokens / self.first.median

    def ratios(self, others: Sequence[Speed]) -> dict[str, float]:
        """Speed of ours to llama.cpp's on the same file, and to ours on the BF16 file."""
        if self.who == LLAMA_CPP:
            return {}
        found: dict[str, float] = {}
        rate = self.decode_rates["median"]
        for other in others:
            if other.batch != self.batch:
                continue
            if other.who == LLAMA_CPP and other.file == self.file:
                found["decode_to_llama_cpp"] = rate / other.decode_rates["median"]
                found["prompt_to_llama_cpp"] = self.prompt_rate / other.prompt_rate
            if other.who == self.who and other.file == HALF != self.file:
                found["decode_to_bf16"] = rate / other.decode_rates["median"]
        return found

    def to_dict(self, others: Sequence[Speed]) -> dict[str, Any]:
        return {
            "file": self.file, "batch": self.batch, "who": self.who,
            "decode_tokens_per_second": self.decode_rates,
            "prompt_tokens_per_second": self.prompt_rate,
            "first_token_seconds": self.first.median, "spread": self.whole.spread,
            **self.ratios(others),
        }  # fmt: skip


def prompts_of(engine: Engine, task: Task, count: int) -> list[list[int]]:
    """Different prompts of the same number of tokens."""
    tokenizer = engine.get_tokenizer()
    found = []
    for number in range(count):
        text = f"Case {number}. " + _TEXT * (1 + task.prompt_tokens // 8)
        found.append(tokenizer.encode(text, add_special_tokens=False)[: task.prompt_tokens])
    return found


def measure(
    writers: Mapping[str, Mapping[str, Writer]],
    batches: Mapping[int, Sequence[list[int]]],
    task: Task,
    runs: int,
) -> list[Speed]:
    """Everything in alternation, after a run of each that is not timed.

    Args:
        writers: by file and name.
        batches: the prompts by number of sequences.
        task: what is written.
        runs: timed runs of each.
    """
    found = []
    for size, batch in batches.items():
        named = {(f, who): write for f, them in writers.items() for who, write in them.items()}
        whole, first = (
            timing.alternate(
                {f"{f} {who}": partial(write, batch, n) for (f, who), write in named.items()}, runs
            )
            for n in (task.tokens, 1)
        )
        found += [
            Speed(f, size, who, task, whole[f"{f} {who}"], first[f"{f} {who}"]) for f, who in named
        ]
    return found
