"""Tokenise the last word of a step again once its delimiter is off."""

from __future__ import annotations

from itertools import pairwise

import torch

from rsd_kernels.state.tables import (
    JOINS_NEXT,
    JOINS_PREVIOUS,
    MAX_WORD_BYTES,
    MergeTables,
    StepTables,
)


def retokenise_end(kept: list[int], tables: StepTables, merges: MergeTables) -> list[int]:
    """`kept` with its last word as the tokenizer would write it.

    Args:
        kept: ids of a step whose delimiter began inside a token, which its prefix has replaced.
            (A delimiter that begins between two tokens leaves the rest as it should be.)
        tables: bytes of the tokens.
        merges: flags and merges.

    Walks back over the tokens of the delimiter's word. A single one is canonical already; several
    are merged again from their bytes.
    """
    start = len(kept)
    while start > 0 and int(merges.flags[kept[start - 1]]) & JOINS_NEXT:
        start -= 1
        if not int(merges.flags[kept[start]]) & JOINS_PREVIOUS:
            break
    if len(kept) - start < 2:
        return kept
    data = [byte for token in kept[start:] for byte in _bytes_of(token, tables)]
    if len(data) > MAX_WORD_BYTES:
        return kept
    return kept[:start] + merge_bytes(data, merges)


def merge_bytes(data: list[int], merges: MergeTables) -> list[int]:
    """Byte-pair encoding of one word: the pair of lowest rank is merged, leftmost first."""
    symbols = [int(merges.byte_token[byte]) for byte in data]
    while len(symbols) > 1:
        found = [_merge(left, right, merges) for left, right in pairwise(symbols)]
        ranks = [int(merges.merge_rank[m]) for m in found if m >= 0]
        if not ranks:
            break
        best = min(ranks)
        i = next(i for i, m in enumerate(found) if m >= 0 and int(merges.merge_rank[m]) == best)
        symbols[i : i + 2] = [int(merges.merge_token[found[i]])]
    return symbols


def _merge(left: int, right: int, merges: MergeTables) -> int:
    """Index of the merge of two tokens, -1 if they do not merge."""
    pair = left * 2**32 + right
    m = int(torch.searchsorted(merges.merge_pair, pair))
    return m if m < len(merges.merge_pair) and int(merges.merge_pair[m]) == pair else -1


def _bytes_of(token: int, tables: StepTables) -> list[int]:
    start, end = tables.token_start[token : token + 2].tolist()
    return tables.token_byte[start:end].tolist()
