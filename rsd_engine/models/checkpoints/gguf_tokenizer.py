"""Builds the tokenizer that a GGUF file describes.

transformers can do so too, but takes some 15 seconds for 50,000 tokens and leaves out rules such
as SmolLM's "every digit is a token". So byte-level BPE of the families below is built here, and
transformers builds the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

_LOG = logging.getLogger(__name__)

_CONTROL, _USER_DEFINED = 3, 4  # token types of llama.cpp

# How the families cut text into words before BPE (the `pre` field), from their tokenizer.json.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")  # names of Llama 3's splitter
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

_SPECIAL = ("bos", "eos", "eot", "eom", "padding", "unknown")
_NAMED = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}

Field = Callable[[str], Any]
"""Reads a value of a GGUF file's metadata; None if the file does not have it."""


def gguf_tokenizer(path: Path, field: Field) -> Any:
    """The tokenizer as a transformers PreTrainedTokenizerFast.

    Args:
        path: the GGUF file.
        field: reads its metadata.

    Raises:
        ValueError: the file lacks tokens or merges.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    pre = _pre_tokenizer(str(field("tokenizer.ggml.pre")))
    if field("tokenizer.ggml.model") != "gpt2" or pre is None:
        return AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )
    tokens = _need(field, "tokenizer.ggml.tokens")
    tokenizer = _byte_level_bpe(tokens, field, pre)
    ids = special_ids(field)
    if _adds_bos(field) and "bos" in ids:
        bos = tokens[ids["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, ids["bos"])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=field("tokenizer.chat_template"),
        model_max_length=field(f"{field('general.architecture')}.context_length"),
        clean_up_tokenization_spaces=False,
        **{name: tokens[ids[key]] for name, key in _NAMED.items() if key in ids},
    )


def special_ids(field: Field) -> dict[str, int]:
    """The ids of the special tokens by llama.cpp's names; those of no token are left out."""
    count = len(field("tokenizer.ggml.tokens") or ())
    found = {key: field(f"tokenizer.ggml.{key}_token_id") for key in _SPECIAL}
    wrong = {k: v for k, v in found.items() if v is not None and not 0 <= int(v) < count}
    if wrong and count:
        _LOG.warning("ids of no token are ignored: %s", wrong)
    return {k: int(v) for k, v in found.items() if v is not None and k not in wrong}


def _adds_bos(field: Field) -> bool:
    """As llama.cpp: the file decides; where it does not say, its family does."""
    given = field("tokenizer.ggml.add_bos_token")
    return field("tokenizer.ggml.pre") in _LLAMA3 if given is None else bool(given)


def _need(field: Field, name: str) -> Any:
    found = field(name)
    if not found:
        raise ValueError(f"the file lacks {name}")
    return found


def _byte_level_bpe(tokens: list[str], field: Field, pre: pre_tokenizers.PreTokenizer) -> Tokenizer:
    family = field("tokenizer.ggml.pre")
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ", 1)) for merge in _need(field, "tokenizer.ggml.merges")],
        ignore_merges=family in _LLAMA3,
    )
    tokenizer = Tokenizer(model)
    if family in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field("tokenizer.ggml.token_type") or []
    named = [(token, kind) for token, kind in zip(tokens, kinds, strict=False) if kind >= _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in named if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t, k in named if k == _USER_DEFINED]
    )
    return tokenizer


def _pre_tokenizer(family: str) -> pre_tokenizers.PreTokenizer | None:
    """The word splitter of a family, None if it is not known here."""
    if family == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, _byte_level(words=True)])
    if family == "gpt-2":
        return _byte_level(words=True)
    words = {
        "qwen2": _QWEN2_WORDS,
        "deepseek-r1-qwen": _QWEN2_WORDS,
        **dict.fromkeys(_LLAMA3, _LLAMA3_WORDS),
    }.get(family)
    if words is None:
        return None
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    return pre_tokenizers.Sequence([split, _byte_level(words=False)])


def _byte_level(words: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
