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

from rsd_engine.steps.vocabulary import Vocabulary, byte_letters, collector_paused, component
from rsd_kernels.state.tables import (
    ENDS_LINE,
    JOINS_NEXT,
    JOINS_PREVIOUS,
    STARTS_LINE,
    UNCERTAIN,
    UNSETTLES,
    MergeTables,
)

_PROBES = ("a", "é", "日", "1")  # letters and digits, which must never join a delimiter
_MARK = "."  # stands for the tokens that may
_BEFORE = ("", _MARK, "a", "\n")  # what may stand before a delimiter


@collector_paused()
def build_merge_tables(
    vocabulary: Vocabulary, delimiters: Sequence[str], device: torch.device | str
) -> MergeTables | None:
    """The tables for a vocabulary and every string that may end a step.

    Returns:
        None if the device cannot know the tokens at the end of a step: the model is not a
        byte-level BPE, or letters or digits may join a delimiter, so that a change could reach back
        without bound. The host must then write the PRM's context, by way of text.
    """
    backend = vocabulary.backend
    split = backend.pre_tokenizer
    if vocabulary.space_mark is not None or not isinstance(backend.model, BPE) or split is None:
        return None
    if any(_joined(split, probe, d) for probe in _PROBES for d in delimiters):
        return None
    model = component(backend.model)
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
    return {byte for data, flag in flagged if flag & JOINS_NEXT for byte in data}


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
        if flag & JOINS_NEXT
    )


def _flags(vocabulary: Vocabulary, split: PreTokenizer, delimiters: Sequence[str]) -> list[int]:
    flags = _unsettling(vocabulary, split, delimiters)
    for token, data in enumerate(vocabulary.token_bytes):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        # The probes have shown that a letter or digit never joins a delimiter.
        if not text or text[-1].isalnum() or token in vocabulary.added_ids:
            continue
        if any(_joined(split, text, delimiter) for delimiter in delimiters):
            flags[token] |= JOINS_NEXT | _neighbours(split, text)
    return flags


def _neighbours(split: PreTokenizer, text: str) -> int:
    """How a token that joins a delimiter stands to the tokens before it and after it."""
    joins, starts_line = _joined(split, _MARK, text), text[0] == "\n"
    uncertain = (
        any(c.isspace() and c != "\n" for c in (text[0], text[-1]))
        or "\n" in text.rstrip("\n").lstrip("\n")
        or _joined(split, "\n", text) != starts_line
    )
    return (
        JOINS_PREVIOUS * joins
        | ENDS_LINE * (text[-1] == "\n")
        | STARTS_LINE * starts_line
        | UNCERTAIN * uncertain
    )


def _unsettling(
    vocabulary: Vocabulary, split: PreTokenizer, delimiters: Sequence[str]
) -> list[int]:
    """UNSETTLES for every token that may change the tokens of a delimiter before it.

    Added tokens do not: text is cut there before it is cut into words.
    """
    known: dict[str, bool] = {}  # by all that matters: the white space at the start and one more
    flags = []
    for token, data in enumerate(vocabulary.token_bytes):
        unsettles = False
        for text in () if token in vocabulary.added_ids or not data else _texts(data):
            head = text[: len(text) - len(text.lstrip()) + 1]
            if head not in known:
                known[head] = _unsettles(split, head, delimiters)
            unsettles |= known[head]
        flags.append(UNSETTLES * unsettles)
    return flags


def _texts(data: bytes) -> tuple[str, ...]:
    """The text of a token; of a part of a character, characters that it may be part of."""
    try:
        return (data.decode("utf-8"),)
    except UnicodeDecodeError:
        return _PROBES


def _unsettles(split: PreTokenizer, text: str, delimiters: Sequence[str]) -> bool:
    """Whether text after a delimiter may cut what stands before it into other words."""
    if not text or text.isspace():  # what follows may be more white space
        return True
    for before in (b + d for b in _BEFORE for d in delimiters):
        alone = [span for _, span in split.pre_tokenize_str(before)]
        both = [span for _, span in split.pre_tokenize_str(before + text)]
        if both[: len(alone)] != alone:
            return True
    return False


def settles_ends(vocabulary: Vocabulary, delimiters: Sequence[str]) -> bool:
    """Whether the device can tell the tokens of most step ends, from the flags of single tokens.

    It cannot where white space is cut differently at the end of a text and before a letter, as by
    GPT-2's tokenizer and SmolLM2's, or a delimiter has more than newlines.
    """
    split = vocabulary.backend.pre_tokenizer
    newlines = all(delimiter.strip("\n") == "" for delimiter in delimiters)
    return newlines and not any(_unsettles(split, probe, delimiters) for probe in _PROBES)


def _joined(split: PreTokenizer, first: str, second: str) -> bool:
    """True if no word begins where `second` follows `first`."""
    words = split.pre_tokenize_str(first + second)
    return all(start != len(first) for _, (start, _) in words)
