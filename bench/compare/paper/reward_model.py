"""A reward model of transformers that takes text: in place of the paper's third server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Model


@dataclass(frozen=True)
class LoadedPrm:
    """A decoder of transformers, on any device, its value head and its tokenizer."""

    model: Any
    tokenizer: Any
    weight: Tensor  # [1, hidden] float32
    bias: Tensor  # [1] float32

    @classmethod
    def of(cls, source: Path | LoadedPrm) -> LoadedPrm:
        """Loads a checkpoint folder in fp32 on the CPU; returns a loaded model as it is."""
        if isinstance(source, LoadedPrm):
            return source
        model = Qwen2Model.from_pretrained(source, dtype=torch.float32).eval()
        weights = load_file(source / "model.safetensors")
        return cls(
            model,
            PreTrainedTokenizerFast.from_pretrained(source),
            weights["v_head.summary.weight"].float(),
            weights["v_head.summary.bias"].float(),
        )


class EagerPrm:
    """A reward model in the format of Skywork-o1-Open-PRM, which reads every text from its start.

    It tokenises as the paper's code does: bos, question and newline; then each step by itself,
    followed by the last token of the delimiter.
    """

    def __init__(self, source: Path | LoadedPrm, delimiter: str) -> None:
        loaded = LoadedPrm.of(source)
        self.model = loaded.model
        self._weight, self._bias = loaded.weight, loaded.bias
        self._tokenizer = loaded.tokenizer
        self._separator = self._encode([delimiter])[0][-1]
        self.tokens_read = 0

    def reset(self) -> None:
        """Sets the count of tokens read to 0."""
        self.tokens_read = 0

    @torch.inference_mode()
    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[float]:
        """The reward of the last step of each answer.

        Texts are padded on the right, so a causal model needs no mask.
        """
        rows = [self.ids(q, s) for q, s in zip(questions, steps, strict=True)]
        self.tokens_read += sum(map(len, rows))
        shape = len(rows), max(map(len, rows))
        ids = torch.zeros(shape, dtype=torch.long, device=self.model.device)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows)), [len(row) - 1 for row in rows]].float()
        return (last @ self._weight[0] + self._bias).sigmoid().tolist()

    def ids(self, question: str, steps: Sequence[str]) -> list[int]:
        """The ids that are read to score the last of these steps."""
        first, *pieces = self._encode([f"{self._tokenizer.bos_token}{question}\n", *steps])
        return [*first, *(i for piece in pieces for i in [*piece, self._separator])]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self._tokenizer(list(texts), add_special_tokens=False)["input_ids"])
