"""A writer with its own decode loop and a prefix cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bench.compare.paper.writers import Completion, EagerWriter, Loaded, Reason


@dataclass(frozen=True)
class _Prefix:
    """The ids of a text, with their keys and values."""

    ids: list[int]
    kv: Tensor  # [layers, 2, kv heads, ids, head dim]


@dataclass
class _Entry:
    """A text that is being completed."""

    name: int
    ids: list[int]
    cached: int  # number of ids whose keys and values are kept from an earlier call
    budget: int
    written: list[int]
    piece: str = ""
    reason: Reason | None = None


class LoopWriter(EagerWriter):
    """A decode loop that is leaner than `generate`.

    Args:
        source: a checkpoint folder, or a model.
        prefix_cache: whether keys and values of a text are kept from one call to the next, as on a
            server with prefix caching: the prefix that a text shares with the last text of the same
            name is not read again. Otherwise every call reads every text from its start.
    """

    def __init__(self, source: Path | Loaded, *, prefix_cache: bool) -> None:
        super().__init__(source)
        self._prefixes: dict[int, _Prefix] | None = {} if prefix_cache else None
        self._num_ids = len(self.tokenizer)
        # The text of each id by itself is enough to find a stop string of ASCII characters.
        self._pieces = self.tokenizer.batch_decode(
            [[i] for i in range(self._num_ids)], skip_special_tokens=True
        )

    def reset(self) -> None:
        super().reset()
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
        entries = [
            self._entry(name, ids, budget)
            for name, ids, budget in zip(names, self.encode(texts), budgets, strict=True)
        ]
        eos = frozenset() if ignore_eos else self._eos
        run = _BatchRun(self.model, entries, [self._cached(entry) for entry in entries])
        self.tokens_read += sum(len(entry.ids) - entry.cached for entry in entries)
        while True:
            written = run.logits[:, : self._num_ids].argmax(dim=-1).tolist()
            for entry, token in zip(entries, written, strict=True):
                self._append(entry, token, stop, eos)
            if all(entry.reason for entry in entries):
                break
            self.tokens_read += sum(entry.reason is None for entry in entries)
            run.feed(written)
        if self._prefixes is not None:
            for index, entry in enumerate(entries):
                ids = [*entry.ids, *entry.written[:-1]]  # the last one was never read
                self._prefixes[entry.name] = _Prefix(ids, run.kept(index, len(ids)))
        return [self._completion(entry, stop, keep_special=ignore_eos) for entry in entries]

    def _entry(self, name: int, ids: list[int], budget: int) -> _Entry:
        prefix = (self._prefixes or {}).get(name)
        shared = 0 if prefix is None else _shared(prefix.ids, ids)
        return _Entry(name, ids, min(shared, len(ids) - 1), budget, [])

    def _cached(self, entry: _Entry) -> Tensor | None:
        if not entry.cached:
            return None
        assert self._prefixes is not None
        return self._prefixes[entry.name].kv[:, :, :, : entry.cached]

    def _append(self, entry: _Entry, token: int, stop: str, eos: frozenset[int]) -> None:
        if entry.reason is not None:
            return
        entry.written.append(token)
        entry.piece += self._pieces[token]
        if stop in entry.piece:
            entry.reason = "stop"
        elif token in eos:
            entry.reason = "eos"
        elif len(entry.written) >= entry.budget:
            entry.reason = "length"

    def _completion(self, entry: _Entry, stop: str, *, keep_special: bool) -> Completion:
        assert entry.reason is not None
        text = self.tokenizer.decode(entry.written, skip_special_tokens=not keep_special)
        return Completion(text.partition(stop)[0], entry.reason, len(entry.written))


class _BatchRun:
    """One batch: cached keys and values, then new ids, both padded on the left."""

    def __init__(
        self, model: Any, entries: Sequence[_Entry], cached: Sequence[Tensor | None]
    ) -> None:
        self._model = model
        self._past = max(entry.cached for entry in entries)
        new = max(len(entry.ids) - entry.cached for entry in entries)
        self._cache = _joined(model, cached, self._past)
        ids = torch.zeros(len(entries), new, dtype=torch.long, device=model.device)
        self._mask = ids.new_zeros(len(entries), self._past + new)
        for index, entry in enumerate(entries):
            fresh = entry.ids[entry.cached :]
            ids[index, new - len(fresh) :] = torch.tensor(fresh)
            self._mask[index, self._past - entry.cached : self._past] = 1
            self._mask[index, self._past + new - len(fresh) :] = 1
        self._run(ids, (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, self._past :])

    def feed(self, tokens: Sequence[int]) -> None:
        """Reads one more id of every text."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._run(self._mask.new_tensor(tokens)[:, None], self._mask.sum(dim=-1, keepdim=True) - 1)

    def kept(self, index: int, count: int) -> Tensor:  # -> [layers, 2, kv heads, count, head dim]
        """Keys and values of the first `count` ids of a text."""
        columns = self._mask[index].nonzero().squeeze(1)[:count]
        layers: Sequence[Any] = self._cache.layers
        return torch.stack(
            [
                torch.stack([layer.keys[index][:, columns], layer.values[index][:, columns]])
                for layer in layers
            ]
        )

    def _run(self, ids: Tensor, positions: Tensor) -> None:  # [entries, new], [entries, new]
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits: Tensor = out.logits[:, -1]  # [entries, vocabulary]


def _joined(model: Any, cached: Sequence[Tensor | None], past: int) -> DynamicCache:
    """One cache of the texts' keys and values, padded on the left to `past` columns."""
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
    """Length of the common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
