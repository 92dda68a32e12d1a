"""Language models of transformers that complete text: in place of the paper's inference servers.

A writer takes texts and completes them up to a stop string, as a server does. It knows nothing of
RSD.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Reason = Literal["stop", "eos", "length"]


@dataclass(frozen=True)
class Completion:
    """What a writer added to one text, without the stop string."""

    text: str
    reason: Reason
    num_tokens: int  # written, including those of the stop string


@dataclass(frozen=True)
class Loaded:
    """A model of transformers, on any device and in any dtype, and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, source: Path | Loaded) -> Loaded:
        """Loads a checkpoint folder in fp32 on the CPU; returns a loaded model as it is."""
        if isinstance(source, Loaded):
            return source
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(source))


class EagerWriter(ABC):
    """A language model that completes batches of texts greedily."""

    def __init__(self, source: Path | Loaded) -> None:
        loaded = Loaded.of(source)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.tokens_read = 0
        eos = self.model.generation_config.eos_token_id
        self._eos = frozenset(eos if isinstance(eos, list) else [eos])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def reset(self) -> None:
        """Empties the caches and sets the count of tokens read to 0."""
        self.tokens_read = 0

    @abstractmethod
    def complete(
        self,
        names: Sequence[int],
        texts: Sequence[str],
        budgets: Sequence[int],
        stop: str,
        *,
        ignore_eos: bool = False,
    ) -> list[Completion]:
        """Completes all texts together; one that is done waits for the others.

        Args:
            names: the answer that each text belongs to; the key of the prefix cache.
            budgets: most tokens to write, for each text.
            stop: ends a text when it occurs in what is written; ASCII.
            ignore_eos: end-of-text is an ordinary token and stays in the text.
        """


class GenerateWriter(EagerWriter):
    """Each call is one call of transformers' `generate`."""

    @torch.inference_mode()
    def complete(
        self,
        names: Sequence[int],
        texts: Sequence[str],
        budgets: Sequence[int],
        stop: str,
        *,
        ignore_eos: bool = False,
    ) -> list[Completion]:
        batch = self.tokenizer(
            list(texts), add_special_tokens=False, padding=True, padding_side="left",
            return_tensors="pt",
        )  # fmt: skip
        written = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max(budgets),
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None if ignore_eos else sorted(self._eos),
            stop_strings=[stop],
            tokenizer=self.tokenizer,
        )[:, batch["input_ids"].shape[1] :]
        eos = frozenset() if ignore_eos else self._eos
        self.tokens_read += int(batch["attention_mask"].sum())
        return [
            self._completion(ids[:budget], stop, eos)
            for ids, budget in zip(written.tolist(), budgets, strict=True)
        ]

    def _completion(self, ids: list[int], stop: str, eos: frozenset[int]) -> Completion:
        """What `generate` wrote for one text, which ends early or at its budget."""
        text = self.tokenizer.decode(ids, skip_special_tokens=bool(eos))
        end = next((i for i, token in enumerate(ids) if token in eos), None)
        count = len(ids) if end is None else end + 1
        self.tokens_read += count - 1
        if stop in text:
            return Completion(text.partition(stop)[0], "stop", count)
        return Completion(text, "length" if end is None else "eos", count)
