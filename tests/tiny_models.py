r"""Tiny random draft, target and PRM that behave like models: text varies, steps and outputs end.

All three share one byte-level tokenizer written out here. A blank line can be reached as one token
(`\n\n`, `.\n\n`), as two (`\n` + `\n`) and inside a longer one (`\n\n\n`). One channel of every
hidden state is almost constant, so a column of the LM head works as a bias: it makes newlines and
end-of-text likely, and padded rows (past the tokenizer's end) so likely that sampling one shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from rsd_engine.steps.vocabulary import read_vocabulary

BOS, EOS, USER, ASSISTANT = "<s>", "</s>", "<|user|>", "<|assistant|>"
SPECIAL = (BOS, EOS, USER, ASSISTANT)
_PRM_SPECIAL = ("<|im_start|>", "<|im_end|>", "<extra_0>")  # of the two-class head's format
CONTEXT = 512
PRM_CONTEXT = 1024
# Qwen2's own pattern: transformers 5 gives it to every tokenizer of model type qwen2 (the PRM).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A model may write these tokens in any order and the text still has only these tokens, the ends of
# steps apart: rows can be compared with rows that went through text.
_MERGES = "Ċ+Ċ Ċ+ĊĊ .+ĊĊ )+ĊĊ Ã+© æ+Ĺ æĹ+¥"
_OTHER_MERGES = "Ċ+Ċ t+h th+e Ġ+the a+d ad+d Ġ+x Ã+© 1+2"
_THIRD_MERGES = "Ċ+Ċ Ċ+ĊĊ )+Ċ )Ċ+Ċ .+Ċ i+n in+g ing+Ġ a+b ab+c 0+1"
_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n' }}"
    "{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_LIKELY = {"Ċ": 3.2, "ĊĊ": 3.4, ".ĊĊ": 3.6, "ĊĊĊ": 2.6, ")ĊĊ": 2.6, EOS: 2.4}
_CONSTANT = 4.0  # of channel 0 in every embedding


class Sources(TypedDict):
    """The arguments of `Engine` that name its models."""

    draft: Path
    target: Path
    prm: Path


@dataclass(frozen=True)
class TinyModels:
    """Folders in Hugging Face format."""

    draft: Path
    target: Path
    prm: Path

    def sources(self) -> Sources:
        """What `Engine` takes."""
        return {"draft": self.draft, "target": self.target, "prm": self.prm}


def make_tiny_models(
    folder: Path,
    *,
    own_prm_tokenizer: bool = False,
    two_class: bool = False,
    prm_hidden: int = 32,
    seed: int = 10,
    draft_tokenizer: Tokenizer | None = None,
    prm_tokenizer: Tokenizer | None = None,
) -> TinyModels:
    """Writes the three checkpoints; the PRM may have a tokenizer of its own, for the text path.

    Its head is Skywork's value head, or Qwen2.5-Math-PRM's of two classes; its attention has 4
    heads. The draft's and the PRM's tokenizers may be given; the others are the same.
    """
    tokenizer = tiny_tokenizer()
    if prm_tokenizer is None:
        prm_tokenizer = other_tokenizer() if own_prm_tokenizer else tokenizer
    if two_class:
        prm_tokenizer = _byte_level(_MERGES, more_special=_PRM_SPECIAL)
    made = TinyModels(folder / "draft", folder / "target", folder / "prm")
    # The padded sizes differ, as those of Qwen2.5 1.5B and 7B do.
    of_draft = draft_tokenizer or tokenizer
    _write_language_model(made.draft, of_draft, hidden=32, layers=2, padded=3, seed=seed + 1)
    _write_language_model(made.target, tokenizer, hidden=48, layers=2, padded=7, seed=seed + 2)
    _write_prm(made.prm, prm_tokenizer, two_class=two_class, hidden=prm_hidden, seed=seed + 3)
    return made


def tiny_tokenizer(*, more_special: tuple[str, ...] = (), more_merges: str = "") -> Tokenizer:
    """Splits like Qwen2's tokenizer; puts bos before every text."""
    return _byte_level(f"{_MERGES} {more_merges}", more_special=more_special)


def other_tokenizer() -> Tokenizer:
    """Other tokens of several letters, and the single letters in another order."""
    return _byte_level(_OTHER_MERGES, reverse=True)


def third_tokenizer() -> Tokenizer:
    """Again other tokens, longer ones, and the special ones last."""
    return _byte_level(_THIRD_MERGES, reverse=True, special_last=True)


def _byte_level(
    pairs: str,
    *,
    reverse: bool = False,
    more_special: tuple[str, ...] = (),
    special_last: bool = False,
) -> Tokenizer:
    halves = [pair.partition("+") for pair in pairs.split()]
    merges = [(left, right) for left, _, right in halves]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=reverse)
    merged = dict.fromkeys(left + right for left, right in merges)
    first, last = ((), SPECIAL) if special_last else (SPECIAL, ())
    tokens = [*first, *letters, *merged, *more_special, *last]
    vocab = {token: i for i, token in enumerate(tokens)}
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}  # as Qwen2's has them
    tokenizer = Tokenizer(models.BPE(vocab, merges, **affixes))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(s, special=True, normalized=False) for s in (*SPECIAL, *more_special)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])]
    )
    return tokenizer


def _write_language_model(
    folder: Path, tokenizer: Tokenizer, *, hidden: int, layers: int, padded: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocab_size = tokenizer.get_vocab_size() + padded
    weights = _decoder(generator, hidden, layers, vocab_size, bias=False)
    head = _normal(generator, vocab_size, hidden, scale=1.6 / hidden**0.5)
    head[:, 0] = 0.0
    for token, boost in _LIKELY.items():
        index = tokenizer.token_to_id(token)
        if index is not None:
            head[index, 0] = boost / _final_constant(hidden)
    head[tokenizer.get_vocab_size() :, 0] = 50.0
    eos = tokenizer.token_to_id(EOS)
    for index, data in enumerate(read_vocabulary(tokenizer).token_bytes):
        if data.decode("utf-8", errors="ignore") == "" and index != eos:
            head[index, 0] = -20.0  # parts of a character, and special tokens
    config = _config("LlamaForCausalLM", "llama", hidden, layers, vocab_size, CONTEXT)
    _write(folder, config, weights | {"lm_head.weight": head}, tokenizer)


def _write_prm(
    folder: Path, tokenizer: Tokenizer, *, two_class: bool, hidden: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers, vocab_size = 2, tokenizer.get_vocab_size() + 5
    weights = _decoder(generator, hidden, layers, vocab_size, bias=True)
    weights |= _two_class_head(generator, hidden) if two_class else _value_head(generator, hidden)
    architecture = "Qwen2ForProcessRewardModel" if two_class else "Qwen2ForPrmModel"
    config = _config(architecture, "qwen2", hidden, layers, vocab_size, PRM_CONTEXT)
    _write(folder, config, weights, tokenizer)


def _value_head(generator: torch.Generator, hidden: int) -> dict[str, Tensor]:
    weight = _normal(generator, 1, hidden, scale=2.0 / hidden**0.5)
    weight[:, 0] = 0.0
    bias = torch.full((1,), -0.5)  # rewards around 0.5
    return {"v_head.summary.weight": weight, "v_head.summary.bias": bias}


def _two_class_head(generator: torch.Generator, hidden: int) -> dict[str, Tensor]:
    inner = _normal(generator, hidden, hidden, scale=1.0 / hidden**0.5)
    inner[:, 0] = 0.0
    return {
        "score.0.weight": inner,
        "score.0.bias": _normal(generator, hidden, scale=0.5),
        "score.2.weight": _normal(generator, 2, hidden, scale=3.0 / hidden**0.5),
        "score.2.bias": torch.tensor([0.8, 0.0]),  # rewards on both sides of 0.5
    }


def _final_constant(hidden: int) -> float:
    """About what channel 0 is after the final norm: the others are of unit size before it."""
    return _CONSTANT / ((hidden - 1 + _CONSTANT**2) / hidden) ** 0.5 * 0.75


def _decoder(
    generator: torch.Generator, hidden: int, layers: int, vocab_size: int, *, bias: bool
) -> dict[str, Tensor]:
    """Random weights; no layer writes to channel 0."""
    kv = hidden // 2
    embedding = _normal(generator, vocab_size, hidden, scale=0.6)
    embedding[:, 0] = _CONSTANT
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(hidden)}
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (2 * hidden, hidden),
            "mlp.up_proj": (2 * hidden, hidden),
            "mlp.down_proj": (hidden, 2 * hidden),
        }
        for name, (rows, columns) in shapes.items():
            # Sharp attention: otherwise every position would see about the same average.
            gain = 2.5 if name in ("self_attn.q_proj", "self_attn.k_proj") else 1.4
            weight = _normal(generator, rows, columns, scale=gain / columns**0.5)
            if name in ("self_attn.o_proj", "mlp.down_proj"):
                weight[0] = 0.0
            weights[f"model.layers.{layer}.{name}.weight"] = weight
            if bias and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                bias_name = f"model.layers.{layer}.{name}.bias"
                weights[bias_name] = _normal(generator, rows, scale=0.2)
        for name in ("input_layernorm", "post_attention_layernorm"):
            scale = 0.75 + 0.5 * torch.rand(hidden, generator=generator)
            weights[f"model.layers.{layer}.{name}.weight"] = scale
    return weights


def _normal(generator: torch.Generator, *shape: int, scale: float) -> Tensor:
    return torch.randn(*shape, generator=generator) * scale


def _config(
    architecture: str, model_type: str, hidden: int, layers: int, vocab_size: int, context: int
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 500.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _write(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    bos, eos = (tokenizer.token_to_id(token) for token in (BOS, EOS))
    config |= {"bos_token_id": bos, "eos_token_id": eos}
    generation = {"bos_token_id": bos, "eos_token_id": [eos], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(folder, tokenizer, config["max_position_embeddings"])


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """The tokenizer with its chat template, beside a checkpoint."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "chat_template": _TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
