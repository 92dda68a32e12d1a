"""The paper's arrangement over the random weights of `bench.random_models`, on their device.

The models are those of transformers, the weights the very numbers that the engine draws. Text goes
from model to model, through a tokenizer in which every id is one character: what is written is read
again as it was, so both sides do the same work and caches of prefixes lose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from bench.compare.paper.arrangement import DELIMITER, Limits, PaperArrangement
from bench.compare.paper.reward_model import EagerPrm, LoadedPrm
from bench.compare.paper.writers import Loaded
from bench.lib.random_models import RandomCheckpoint
from bench.lib.scenes import Scene, prompt_ids

_FIRST = 0x10000  # characters from here on are one code point each, and never a blank
_HEAD = "v_head.summary."


class ForcedPrm(EagerPrm):
    """Scores in earnest; what it says is chosen: 1 for steps that shall be kept, else 0."""

    kept: Sequence[bool] = ()  # of every step of an answer

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[float]:
        super().score(questions, steps)
        return [float(self.kept[len(written) - 1]) for written in steps]


class Baseline:
    """Draft, target and reward model of transformers, arranged as in the paper's code.

    Args:
        sources: by role, Qwen2 in the format of Skywork-o1-Open-PRM; see `RandomTriple.sources`.
        num_tokens: ids of their tokenizer.
    """

    def __init__(self, sources: dict[str, RandomCheckpoint], num_tokens: int) -> None:
        tokenizer = character_tokenizer(num_tokens)
        draft, target = (
            Loaded(_model(Qwen2ForCausalLM, sources[role])[0], tokenizer)
            for role in ("draft", "target")
        )
        decoder, head = _model(Qwen2Model, sources["prm"], prefix="model.")
        weight, bias = (head[_HEAD + name].float() for name in ("weight", "bias"))
        self._prm = ForcedPrm(LoadedPrm(decoder, tokenizer, weight, bias), DELIMITER)
        self._arrangement = PaperArrangement(draft, target, self._prm, threshold=0.5)

    def play(self, scene: Scene, kept: Sequence[bool]) -> list[tuple[str, list[int]]]:
        """Who wrote each step of the first slot of a scene, and its ids; prompt included.

        Args:
            scene: of one slot.
            kept: for every step, whether the draft's is kept.
        """
        self._prm.kept = kept
        self._arrangement.limits = Limits(
            max_tokens=scene.steps * scene.step_tokens,
            max_steps=scene.steps,
            max_step_tokens=scene.step_tokens,
            force_steps=True,
        )
        [answer] = self._arrangement.solve([text_of(prompt_ids(scene, 0))])
        return [(step.source, ids_of(step.text)) for step in answer.steps]


def text_of(ids: Sequence[int]) -> str:
    return "".join(chr(_FIRST + token) for token in ids)


def ids_of(text: str) -> list[int]:
    return [ord(character) - _FIRST for character in text]


@cache
def character_tokenizer(num_tokens: int) -> PreTrainedTokenizerFast:
    """Id i is one character of its own, and the prompt of a chat is its text."""
    vocabulary = {chr(_FIRST + i): i for i in range(num_tokens)}
    first, second = text_of([0]), text_of([1])
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=first))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=first, bos_token=second, unk_token=first,
        chat_template="{{ messages[0]['content'] }}",
    )  # fmt: skip


def _model(
    kind: Any, source: RandomCheckpoint, *, prefix: str = ""
) -> tuple[Any, dict[str, Tensor]]:
    """The model, and the tensors that are not its own, such as a head's."""
    raw = {key: value for key, value in source.config().items() if key != "architectures"}
    config = Qwen2Config(**raw)
    dtype = source.dtype
    with torch.device(source.device):
        model = kind._from_config(config, dtype=dtype).eval()
    places = dict(model.named_parameters())
    others = {}
    for name, tensor in source.tensors():
        own = name.removeprefix(prefix)
        if own in places:
            places.pop(own).data.copy_(tensor)
        else:
            others[name] = tensor
    if places:
        raise ValueError(f"{source.source} has no tensors for {sorted(places)}")
    return model, others
