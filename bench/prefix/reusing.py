"""transformers with its own cache kept from call to call: what its users write by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from bench.prefix.scenes import Prompt, Scene


@dataclass(frozen=True)
class Kept:
    """What a cache holds."""

    ids: tuple[int, ...]
    cache: DynamicCache


class Reusing:
    """Answers greedily; of every prompt it reads only what follows the beginning it has kept.

    Prompts of a batch begin alike: that beginning is read once, by a batch of one, and the cache is
    repeated. What follows is padded between the two.
    """

    def __init__(self, model: Any, batch: int) -> None:
        self._model, self._batch = model, batch

    @classmethod
    def load(cls, folder: Path, batch: int) -> Reusing:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return cls(model.eval(), batch)

    @torch.inference_mode()
    def answer(self, scene: Scene) -> list[tuple[int, ...]]:
        """The new tokens of every sample."""
        answers: list[tuple[int, ...]] = []
        kept = Kept((), DynamicCache())
        for prompts in scene.apart().rounds:
            for start in range(0, len(prompts), self._batch):
                batch = prompts[start : start + self._batch]
                kept = self._read(kept, batch)
                found = self._continue(kept, batch, scene.tokens)
                answers += [ids for ids, _ in found]
                if len(batch) == 1:
                    [(ids, cache)] = found
                    kept = Kept((*batch[0].ids, *ids[:-1]), cache)
        return answers

    def _read(self, kept: Kept, batch: Sequence[Prompt]) -> Kept:
        """The beginning of all prompts; their last tokens stay, for their logits are needed."""
        common = _common([prompt.ids[:-1] for prompt in batch])
        same = len(_common([common, kept.ids]))
        if same == len(kept.ids) == len(common):
            return kept
        kept.cache.crop(same - len(kept.ids))
        if same < len(common):
            ids = torch.tensor([common[same:]])
            self._model(ids, past_key_values=kept.cache, logits_to_keep=1)
        return Kept(common, kept.cache)

    def _continue(
        self, kept: Kept, batch: Sequence[Prompt], tokens: int
    ) -> list[tuple[tuple[int, ...], DynamicCache]]:
        rests = [prompt.ids[len(kept.ids) :] for prompt in batch]
        longest = max(map(len, rests))
        pads = [longest - len(rest) for rest in rests]
        ids = [[*kept.ids, *[0] * pad, *rest] for pad, rest in zip(pads, rests, strict=True)]
        mask = [[1] * len(kept.ids) + [0] * pad + [1] * (longest - pad) for pad in pads]
        cache = kept.cache
        if len(batch) > 1:
            cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(len(batch))
        written = self._model.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), past_key_values=cache,
            max_new_tokens=tokens, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        begin, end = len(ids[0]), self._model.generation_config.eos_token_id
        return [(_until(row[begin:], end), cache) for row in written.tolist()]


def _common(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The ids with which all rows begin."""
    first = min(rows, key=len)
    same = next(
        (i for i, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1), len(first)
    )
    return first[:same]


def _until(ids: Sequence[int], end: int | Sequence[int]) -> tuple[int, ...]:
    """Up to the first id that ends a text."""
    ends = {end} if isinstance(end, int) else set(end)
    stop = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[:stop])
