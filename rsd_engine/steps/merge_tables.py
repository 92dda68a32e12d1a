"""Builds the tables with which the device tokenises the end of a step anew (`MergeTables`).

The tokenizer itself tells, token by token, where words begin and end, so no splitting rule of a
model family is written down here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from rsd_engine.steps.vocabulary import (
    Vocabulary,
    backend_of,
    byte_letters,
    component,
    read_vocabulary,
)
from rsd_kernels.state.tables import JOINS_NEXT, JOINS_PREVIOUS, MergeTables

_PROBES = ("a", "é", "日", "1")  # letters and digits, which must never join a delimiter
_MARK = "."  # stands for the tokens that may


def build_merge_tables(
    tokenizer: Any, delimiters: Sequence[str], device: torch.device | str
) -> MergeTables | None:
    """The tables for a tokenizer and every string that may end a step.

    Returns:
        None if the device cannot know the tokens at the end of a step: the model is not a
        byte-level BPE, or letters or digits may join a delimiter, so that a change could reach back
        without bound. The host must then write the PRM's context, by way of text.

    Raises:
        ValueError: as `read_vocabulary`.
    """
    vocabulary = read_vocabulary(tokenizer)
    backend = backend_of(tokenizer)
    split = backend.pre_tokenizer
    model = component(backend.model)
    if vocabulary.space_mark is not None or model["type"] != "BPE" or split is None:
        return None
    if any(_joined(split, probe, d) for probe in _PROBES for d in delimiters):
        return None
    flags = _flags(vocabulary, split, delimiters)
    byte_token = [model["vocab"].get(byte_letters(bytes([byte])), -1) for byte in range(256)]
    if any(byte_token[byte] < 0 for byte in _flagged_bytes(vocabulary, flags)):
        return None
    if model.get("ignore_merges") and not _merges_reach(vocabulary, flags, model):
        return None
    merges = _merges(model)
    return MergeTables(
        flags=torch.tensor(flags, dtype=torch.uint8, device=device),
        byte_token=torch.tensor(byte_token, dtype=torch.int32, device=device),
        merge_pair=torch.tensor([m[0] for m in merges], dtype=torch.int64, device=device),
        merge_rank=torch.tensor([m[1] for m in merges], dtype=torch.int32, device=device),
        merge_token=torch.tensor([m[2] for m in merges], dtype=torch.int32, device=device),
    )


def _flagged_bytes(vocabulary: Vocabulary, flags: list[int]) -> set[int]:
    """Every byte of the flagged tokens; some vocabularies have no token for bytes not in UTF-8."""
    flagged = zip(vocabulary.token_bytes, flags, strict=True)
    return {byte for data, flag in flagged if flag for byte in data}


def _merges(model: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(pair, rank, token) of every merge, in order of the pair."""
    vocab = model["vocab"]
    return sorted(
        (vocab[left] * 2**32 + vocab[right], rank, vocab[left + right])
        for rank, (left, right) in enumerate(model["merges"])
    )


def _merges_reach(vocabulary: Vocabulary, flags: list[int], model: dict[str, Any]) -> bool:
    """True if merging yields every flagged token from its bytes.

    A tokenizer with `ignore_merges` (Llama 3) looks words up first; the device only merges.
    """
    merging = BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    return all(
        len(merging.tokenize(byte_letters(data))) == 1
        for data, flag in zip(vocabulary.token_bytes, flags, strict=True)
        if flag
    )


def _flags(vocabulary: Vocabulary, split: PreTokenizer, delimiters: Sequence[str]) -> list[int]:
    flags = [0] * vocabulary.num_tokens
    for token, data in enumerate(vocabulary.token_bytes):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        # The probes have shown that a letter or digit never joins a delimiter.
        if not text or text[-1].isalnum() or token in vocabulary.added_ids:
            continue
        if any(_joined(split, text, delimiter) for delimiter in delimiters):
            flags[token] = JOINS_NEXT | (JOINS_PREVIOUS * _joined(split, _MARK, text))
    return flags


def _joined(split: PreTokenizer, first: str, second: str) -> bool:
    """True if no word begins where `second` follows `first`."""
    words = split.pre_tokenize_str(first + second)
    return all(start != len(first) for _, (start, _) in words)
