"""Builds the tokenizer that a GGUF file describes.

transformers can do so too, but takes some 15 seconds for 50,000 tokens and leaves out rules such
as SmolLM's "every digit is a token". So byte-level BPE of the families below is built here, and
transformers builds the rest.
"""

from __future__ import annotations

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

_CONTROL, _USER_DEFINED = 3, 4  # token types of llama.cpp

# How the families cut text into words before BPE (the `pre` field), from their tokenizer.json.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def gguf_tokenizer(path: Path, field: Callable[[str], Any]) -> Any:
    """The tokenizer as a transformers PreTrainedTokenizerFast.

    Args:
        path: the GGUF file.
        field: reads a value of its metadata; None if the file does not have it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    pre = _pre_tokenizer(str(field("tokenizer.ggml.pre")))
    if field("tokenizer.ggml.model") != "gpt2" or pre is None:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokens = field("tokenizer.ggml.tokens")
    tokenizer = _byte_level_bpe(tokens, field, pre)
    special = {
        name: tokens[field(f"tokenizer.ggml.{key}_token_id")]
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("pad_token", "padding"),
            ("unk_token", "unknown"),
        )
        if field(f"tokenizer.ggml.{key}_token_id") is not None
    }
    if field("tokenizer.ggml.add_bos_token"):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, field("tokenizer.ggml.bos_token_id"))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=field("tokenizer.chat_template"),
        model_max_length=field(f"{field('general.architecture')}.context_length"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _byte_level_bpe(
    tokens: list[str], field: Callable[[str], Any], pre: pre_tokenizers.PreTokenizer
) -> Tokenizer:
    family = field("tokenizer.ggml.pre")
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")],
        ignore_merges=family == "llama-bpe",
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
        "llama-bpe": _LLAMA3_WORDS,
    }.get(family)
    if words is None:
        return None
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    return pre_tokenizers.Sequence([split, _byte_level(words=False)])


def _byte_level(words: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
