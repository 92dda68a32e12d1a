"""The paper's arrangement with the random weights of `bench.lib.random_models`, on their device.

The models are those of transformers, with exactly the weights that the engine draws. They exchange
text through a tokenizer in which every token is one character. So text becomes the same tokens
again, both sides do the same work, and prefix caches lose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from bench.compare.paper.arrangement import DELIMITER, Limits, PaperArrangement
from bench.compare.paper.reward_model import EagerPrm, LoadedPrm
from bench.compare.paper.writers import Loaded
from bench.lib.random_models import Checkpoints, RandomCheckpoint
from bench.lib.scenes import Scene, prompt_ids

_FIRST = 0x10000  # of characters that are never white space
_HEAD = "v_head.summary."


class ForcedPrm(EagerPrm):
    """Scores every step, then reports 1 for steps that are to be kept and 0 for the others."""

    kept: Sequence[bool] = ()  # for every step of an answer

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[float]:
        super().score(questions, steps)
        return [float(self.kept[len(written) - 1]) for written in steps]


class Baseline:
    """Draft, target and reward model of transformers, arranged as in the paper's code.

    Args:
        checkpoints: Qwen2 models; the PRM in the format of Skywork-o1-Open-PRM.
        num_tokens: number of tokens of their tokenizer.
    """

    def __init__(self, checkpoints: Checkpoints, num_tokens: int) -> None:
        tokenizer = character_tokenizer(num_tokens)
        draft, target = (
            Loaded(_model(AutoModelForCausalLM, source)[0], tokenizer)
            for source in (checkpoints.draft, checkpoints.target)
        )
        decoder, head = _model(AutoModel, checkpoints.prm, prefix="model.")
        weight, bias = (head[_HEAD + name].float() for name in ("weight", "bias"))
        self._prm = ForcedPrm(LoadedPrm(decoder, tokenizer, weight, bias), DELIMITER)
        self._arrangement = PaperArrangement(draft, target, self._prm, threshold=0.5)

    def play(self, scene: Scene, kept: Sequence[bool]) -> list[tuple[str, list[int]]]:
        """Who wrote each step of a scene, and its token ids; the prompt is read as well.

        Args:
            scene: of one slot.
            kept: for every step, whether what the draft wrote is kept.
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
    """Every token is one character; the chat template returns the text of the message."""
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
    """A model of transformers, and those tensors that are not part of it, such as a head."""
    raw = {key: value for key, value in source.config().items() if key != "architectures"}
    config = Qwen2Config(**raw)
    with torch.device(source.device):
        model = kind.from_config(config, dtype=source.dtype).eval()
    parameters = dict(model.named_parameters())
    others = {}
    for name, stored in source.tensors().items():
        tensor, own = stored.read(), name.removeprefix(prefix)
        if own in parameters:
            parameters.pop(own).data.copy_(tensor)
        else:
            others[name] = tensor
    if parameters:
        raise ValueError(f"{source.source} has no tensors for {sorted(parameters)}")
    return model, others
