"""Models of real sizes with random weights, made on the device: nothing is downloaded.

What a pass costs depends on shapes alone, so timings need no trained weights. The tokenizer is made
up too, with as many byte-level tokens as the real one has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rsd_engine.models.checkpoints.base import Checkpoint, StoredTensor
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.registry import find_reward_family
from rsd_engine.models.weights import EMBEDDING, DecoderWeights
from rsd_engine.roofline.presets import PRESETS

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>")
QWEN_TOKENS = 151665  # ids of Qwen2.5's tokenizer; embeddings past them are padding
_META = torch.device("meta")


def tiny_config(hidden: int, architecture: str = "Qwen2ForCausalLM") -> dict[str, Any]:
    """A model that a CPU runs in no time."""
    return {
        "architectures": [architecture],
        "vocab_size": 320,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


class Checkpoints(NamedTuple):
    """The three models, in the order in which `Engine` takes them."""

    draft: RandomCheckpoint
    target: RandomCheckpoint
    prm: RandomCheckpoint


@dataclass(frozen=True)
class RandomTriple:
    """The configs of a draft, a target and a PRM, and the number of tokens of their tokenizer."""

    draft: Mapping[str, Any]
    target: Mapping[str, Any]
    prm: Mapping[str, Any]
    num_tokens: int

    def checkpoints(
        self, device: torch.device, dtype: torch.dtype | None, max_positions: int
    ) -> Checkpoints:
        """Three checkpoints, which have the same weights every time.

        Args:
            device: where the weights are drawn.
            dtype: of the weights; None for that of the config.
            max_positions: length of context that the configs must allow.
        """
        draft, target, prm = (
            RandomCheckpoint(
                role, _with_context(config, max_positions), device, dtype,
                num_tokens=self.num_tokens, seed=seed,
            )
            for seed, (role, config) in enumerate(
                (("draft", self.draft), ("target", self.target), ("prm", self.prm)), start=1
            )
        )  # fmt: skip
        return Checkpoints(draft, target, prm)


def _qwen(draft: str, target: str, prm: str) -> RandomTriple:
    return RandomTriple(PRESETS[draft], PRESETS[target], PRESETS[prm], QWEN_TOKENS)


TRIPLES: dict[str, RandomTriple] = {
    "tiny": RandomTriple(
        tiny_config(32), tiny_config(64), tiny_config(32, "Qwen2ForPrmModel"), num_tokens=300
    ),
    "0.5b-7b": _qwen("qwen2.5-0.5b", "qwen2.5-7b", "skywork-prm-1.5b"),
    "1.5b-7b": _qwen("qwen2.5-1.5b", "qwen2.5-7b", "skywork-prm-1.5b"),
    "1.5b-7b-7b": _qwen("qwen2.5-1.5b", "qwen2.5-7b", "skywork-prm-7b"),
    "1.5b-32b": _qwen("qwen2.5-1.5b", "qwen2.5-32b", "skywork-prm-1.5b"),
    "7b-32b": _qwen("qwen2.5-7b", "qwen2.5-32b", "skywork-prm-1.5b"),
}


class RandomCheckpoint(Checkpoint):
    """A checkpoint whose tensors are drawn one at a time, when they are read.

    Args:
        source: its name in messages.
        raw: the config.
        device: where the tensors are drawn.
        dtype: of the tensors; None for that of the config.
        num_tokens: number of tokens of its tokenizer.
        seed: of the weights.
    """

    def __init__(
        self,
        source: str,
        raw: Mapping[str, Any],
        device: torch.device,
        dtype: torch.dtype | None = None,
        *,
        num_tokens: int,
        seed: int,
    ) -> None:
        self.source = f"random {source}"
        self.device = device
        self.dtype = dtype or ModelConfig.from_dict(raw).dtype
        self._raw = raw
        self._num_tokens = num_tokens
        self._seed = seed

    def config(self) -> Mapping[str, Any]:
        return self._raw

    def tensors(self) -> Mapping[str, StoredTensor]:
        """The same every time, if they are read once each and in this order."""
        generator = torch.Generator(self.device).manual_seed(self._seed)

        def draw(name: str, shape: torch.Size) -> Tensor:
            tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
            if name.endswith("norm.weight"):
                return tensor.fill_(1)
            return tensor.normal_(0, shape[-1] ** -0.5, generator=generator)

        return {
            name: StoredTensor(
                tuple(place.shape),
                self.dtype,
                file=self.source,
                nbytes=place.numel() * self.dtype.itemsize,
                read=partial(draw, name, place.shape),
            )
            for name, place in _places(ModelConfig.from_dict(self._raw)).items()
        }

    def tokenizer(self) -> Any:
        return random_tokenizer(self._num_tokens)

    def generation_config(self) -> dict[str, Any] | None:
        return None


def write_checkpoint(checkpoint: RandomCheckpoint, folder: Path) -> None:
    """Writes it as transformers would, with all weights in one file."""
    folder.mkdir(parents=True)
    weights = {name: stored.read() for name, stored in checkpoint.tensors().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config())), encoding="utf-8")
    checkpoint.tokenizer().save_pretrained(folder)


@cache
def random_tokenizer(num_tokens: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of this many tokens: bytes, pairs and triples of them, and special tokens.

    Raises:
        ValueError: fewer tokens than bytes and special tokens.
    """
    if num_tokens < 256 + len(_SPECIAL):
        raise ValueError(f"num_tokens must be at least {256 + len(_SPECIAL)}, got {num_tokens}")
    merges = _merges(num_tokens - 256 - len(_SPECIAL))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_SPECIAL[0], bos_token=_SPECIAL[1]
    )


def _merges(count: int) -> list[tuple[str, str]]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in letters for b in letters][:count]
    missing = count - len(pairs)
    threes = [(a + b, c) for a, b in pairs[: -(-missing // len(letters))] for c in letters]
    return pairs + threes[: max(0, missing)]


def _places(config: ModelConfig) -> dict[str, Tensor]:
    """By name, tensors of the right shapes that hold no memory."""
    weights = DecoderWeights.allocate(config, torch.float32, _META)
    places = weights.places(config)
    if config.is_reward_model:
        family = find_reward_family(config.architecture)
        assert family is not None
        places |= family.places(family.allocate_head(weights.final_norm, config.rms_norm_eps))
    elif not config.tie_word_embeddings:
        places["lm_head.weight"] = places[EMBEDDING]
    return places


def _with_context(raw: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """The config with at least this context; which costs nothing in itself."""
    context = max(max_positions, raw["max_position_embeddings"])
    return dict(raw) | {"max_position_embeddings": context}
