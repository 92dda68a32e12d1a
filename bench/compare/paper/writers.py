"""Language models of transformers behind text: what stands in for the paper's inference servers.

Nothing here knows of reward-guided speculation: a writer takes texts and completes them up to a
stop string, as a server does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
)

Reason = Literal["stop", "eos", "length"]


@dataclass(frozen=True)
class Completion:
    """What a writer added to one text: up to the stop string, which is left out."""

    text: str
    reason: Reason
    num_tokens: int  # written, those that only spelled the stop string included


@dataclass(frozen=True)
class _Prefix:
    """Ids of a text and their keys and values."""

    ids: list[int]
    kv: Tensor  # [layers, 2, kv heads, ids, head dim]


@dataclass
class _Row:
    """A text that is being completed."""

    name: int
    ids: list[int]
    cached: int  # ids whose keys and values are kept from an earlier call
    budget: int
    written: list[int]
    piece: str = ""
    reason: Reason | None = None


@dataclass(frozen=True)
class Loaded:
    """A model of transformers, on any device and in any dtype, and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, source: Path | Loaded) -> Loaded:
        """A checkpoint's folder is loaded in fp32, on the CPU."""
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

    def forget(self) -> None:
        """Drops what is kept between calls and sets the count of read tokens to 0."""
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
        """Completes all texts together; a row that is done waits for the others.

        Args:
            names: who each text belongs to; the key of the prefix cache.
            budgets: most tokens to write, one a text.
            stop: looked for in the new text only; ASCII.
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
        """One row of what `generate` wrote: it ends early, or at its budget."""
        text = self.tokenizer.decode(ids, skip_special_tokens=bool(eos))
        end = next((i for i, token in enumerate(ids) if token in eos), None)
        count = len(ids) if end is None else end + 1
        self.tokens_read += count - 1
        if stop in text:
            return Completion(text.partition(stop)[0], "stop", count)
        return Completion(text, "length" if end is None else "eos", count)


class LoopWriter(EagerWriter):
    """A decode loop of its own, leaner than `generate`.

    Args:
        source: checkpoint, or a model.
        prefix_cache: keep keys and values of a text from one call to the next, as a server with
            prefix caching does: the ids of the new text are compared with those of the last text
            of that name, and what they share from the left is not read again. Without it every
            call reads every text from its start.
    """

    def __init__(self, source: Path | Loaded, *, prefix_cache: bool) -> None:
        super().__init__(source)
        self._prefixes: dict[int, _Prefix] | None = {} if prefix_cache else None
        self._num_ids = len(self.tokenizer)
        # Text of each id alone: enough to look for a stop string of ASCII characters.
        self._pieces = self.tokenizer.batch_decode(
            [[i] for i in range(self._num_ids)], skip_special_tokens=True
        )

    def forget(self) -> None:
        super().forget()
        if self._prefixes is not None:
            self._prefixes.clear()

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
        rows = [
            self._row(name, ids, budget)
            for name, ids, budget in zip(names, self.encode(texts), budgets, strict=True)
        ]
        eos = frozenset() if ignore_eos else self._eos
        run = _BatchRun(self.model, rows, [self._cached(row) for row in rows])
        self.tokens_read += sum(len(row.ids) - row.cached for row in rows)
        while True:
            written = run.logits[:, : self._num_ids].argmax(dim=-1).tolist()
            for row, token in zip(rows, written, strict=True):
                self._append(row, token, stop, eos)
            if all(row.reason for row in rows):
                break
            self.tokens_read += sum(row.reason is None for row in rows)
            run.feed(written)
        if self._prefixes is not None:
            for index, row in enumerate(rows):
                ids = [*row.ids, *row.written[:-1]]  # the last one was never read
                self._prefixes[row.name] = _Prefix(ids, run.kept(index, len(ids)))
        return [self._completion(row, stop, keep_special=ignore_eos) for row in rows]

    def _row(self, name: int, ids: list[int], budget: int) -> _Row:
        prefix = (self._prefixes or {}).get(name)
        shared = 0 if prefix is None else _shared(prefix.ids, ids)
        return _Row(name, ids, min(shared, len(ids) - 1), budget, [])

    def _cached(self, row: _Row) -> Tensor | None:
        if not row.cached:
            return None
        assert self._prefixes is not None
        return self._prefixes[row.name].kv[:, :, :, : row.cached]

    def _append(self, row: _Row, token: int, stop: str, eos: frozenset[int]) -> None:
        if row.reason is not None:
            return
        row.written.append(token)
        row.piece += self._pieces[token]
        if stop in row.piece:
            row.reason = "stop"
        elif token in eos:
            row.reason = "eos"
        elif len(row.written) >= row.budget:
            row.reason = "length"

    def _completion(self, row: _Row, stop: str, *, keep_special: bool) -> Completion:
        assert row.reason is not None
        text = self.tokenizer.decode(row.written, skip_special_tokens=not keep_special)
        return Completion(text.partition(stop)[0], row.reason, len(row.written))


class _BatchRun:
    """One padded batch: kept keys and values, then the new ids, both padded on the left."""

    def __init__(self, model: Any, rows: Sequence[_Row], cached: Sequence[Tensor | None]) -> None:
        self._model = model
        self._past = max(row.cached for row in rows)
        new = max(len(row.ids) - row.cached for row in rows)
        self._cache = _joined(model, cached, self._past)
        ids = torch.zeros(len(rows), new, dtype=torch.long, device=model.device)
        self._mask = ids.new_zeros(len(rows), self._past + new)
        for index, row in enumerate(rows):
            fresh = row.ids[row.cached :]
            ids[index, new - len(fresh) :] = torch.tensor(fresh)
            self._mask[index, self._past - row.cached : self._past] = 1
            self._mask[index, self._past + new - len(fresh) :] = 1
        self._run(ids, (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, self._past :])

    def feed(self, tokens: Sequence[int]) -> None:
        """Reads one more id of every row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._run(self._mask.new_tensor(tokens)[:, None], self._mask.sum(dim=-1, keepdim=True) - 1)

    def kept(self, index: int, count: int) -> Tensor:  # -> [layers, 2, kv heads, count, head dim]
        """Keys and values of the first `count` ids of a row."""
        columns = self._mask[index].nonzero().squeeze(1)[:count]
        return torch.stack(
            [
                torch.stack([layer.keys[index][:, columns], layer.values[index][:, columns]])
                for layer in self._cache.layers
            ]
        )

    def _run(self, ids: Tensor, positions: Tensor) -> None:  # [rows, new], [rows, new]
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits: Tensor = out.logits[:, -1]  # [rows, vocabulary]


def _joined(model: Any, cached: Sequence[Tensor | None], past: int) -> DynamicCache:
    """One cache of the rows' keys and values, padded on the left to `past` columns."""
    cache = DynamicCache(config=model.config)
    like = next((kv for kv in cached if kv is not None), None)
    if like is None:
        return cache
    layers, two, heads, _, head_dim = like.shape
    joined = like.new_zeros(layers, two, len(cached), heads, past, head_dim)
    for index, kv in enumerate(cached):
        if kv is not None:
            joined[:, :, index, :, past - kv.shape[3] :] = kv
    for layer in range(layers):
        cache.update(joined[layer, 0], joined[layer, 1], layer)
    return cache


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
