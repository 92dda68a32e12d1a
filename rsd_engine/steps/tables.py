"""Builds the tables with which the device cuts a step and writes the PRM's context (`StepTables`).

In terms of text: cut the step after its delimiter, remove the delimiter, tokenise the rest for the
PRM, add the separator. Only a token in which a delimiter begins or ends needs tokenising anew; the
tables have the prefixes of these few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from rsd_engine.steps.vocabulary import Vocabulary, plain_encoder
from rsd_kernels.state.enums import MAX_CUT_TOKENS
from rsd_kernels.state.tables import BY_TEXT, NOT_READ, StepTables

Prefixes = dict[int, dict[int, list[int]]]  # token -> length of the prefix -> its tokens


def build_step_tables(
    vocabulary: Vocabulary,
    prm_vocabulary: Vocabulary | None,
    delimiters: Sequence[str],
    separator_ids: Sequence[int],
    device: torch.device | str,
    *,
    before_step: Sequence[int] = (),
    num_transient: int = 0,
    as_written: bool = False,
) -> StepTables:
    """The tables for a vocabulary, delimiters and a PRM that shares the vocabulary.

    Args:
        vocabulary: of draft and target.
        prm_vocabulary: the PRM's, the same but for added tokens (`shares_vocabulary`); None if
            there is no PRM or the host writes its context by way of text (`TextBridge`).
            `prm_token` is then NOT_READ everywhere.
        delimiters: every string that may end a step, of all requests.
        separator_ids: PRM ids that follow each step, from the PRM's format.
        device: where the tables will be.
        before_step: PRM ids in front of every step but the first.
        num_transient: how many of the last separator ids leave the PRM's context once read.
        as_written: whether the PRM reads steps as they were written, delimiters too.

    Raises:
        ValueError: `num_transient` is more than there are separator ids.
    """
    if not 0 <= num_transient <= len(separator_ids):
        raise ValueError(
            f"num_transient is {num_transient}; it must be 0 to {len(separator_ids)}, the number "
            "of separator ids"
        )
    cuts = _cuts(vocabulary, [delimiter.encode("utf-8") for delimiter in delimiters])
    entry, start, tokens = _prefix_table(vocabulary, _canonical_prefixes(vocabulary, cuts))
    starts = [0]
    for data in vocabulary.token_bytes:
        starts.append(starts[-1] + len(data))
    return StepTables(
        token_byte=_bytes_tensor(b"".join(vocabulary.token_bytes), device),
        token_start=_int_tensor(starts, device),
        prefix_entry=_int_tensor(entry, device),
        prefix_start=_int_tensor(start, device),
        prefix_token=_int_tensor(tokens, device),
        prm_token=_int_tensor(_prm_tokens(vocabulary, prm_vocabulary), device),
        separator=_int_tensor(list(separator_ids), device),
        before_step=_int_tensor(list(before_step), device),
        num_transient=num_transient,
        as_written=int(as_written),
    )


def _cuts(vocabulary: Vocabulary, delimiters: list[bytes]) -> dict[int, list[int]]:
    """Where each token may be cut: lengths c, 1 <= c < len(token), in order.

    A cut is after a delimiter, or the part of one that began in an earlier token, or before the
    part of a delimiter at the end of the token.
    """
    ends = {delimiter[:k] for delimiter in delimiters for k in range(1, len(delimiter) + 1)}
    edges = {delimiter[0] for delimiter in delimiters} | {d[-1] for d in delimiters}
    cuts: dict[int, list[int]] = {}
    for token, data in enumerate(vocabulary.token_bytes):
        if len(data) < 2 or edges.isdisjoint(data):
            continue
        found = [
            c
            for c in range(1, len(data))
            if data[c:] in ends
            or any(data[:c].endswith(d) or d.endswith(data[:c]) for d in delimiters)
        ]
        if found:
            cuts[token] = found
    return cuts


def _canonical_prefixes(vocabulary: Vocabulary, cuts: dict[int, list[int]]) -> Prefixes:
    """The tokens of every prefix, [] if it has none or too many; equal ones are tokenised once."""
    data = vocabulary.token_bytes
    wanted = sorted({data[token][:c] for token, lengths in cuts.items() for c in lengths})
    encoder = plain_encoder(vocabulary.backend)
    tokens_of = {prefix: _tokens_of(prefix, encoder, vocabulary) for prefix in wanted}
    for prefix, ids in tokens_of.items():
        if len(ids) > MAX_CUT_TOKENS:
            tokens_of[prefix] = []
    return {
        token: {c: tokens_of[data[token][:c]] for c in lengths} for token, lengths in cuts.items()
    }


def _tokens_of(prefix: bytes, encoder: Tokenizer, vocabulary: Vocabulary) -> list[int]:
    """The canonical tokens of `prefix`, [] if no tokens have exactly these bytes.

    It is tokenised as text first. That fails if the tokenizer puts a space before every text
    (sentencepiece) or the bytes are not text; then by the model alone, in its own alphabet.
    """
    ids = _encode_text(prefix, encoder)
    if ids is not None and vocabulary.join(ids) == prefix:
        return ids
    spelled = vocabulary.spell(prefix)
    if spelled is not None:
        ids = [token.id for token in encoder.model.tokenize(spelled)]
        if vocabulary.join(ids) == prefix:
            return ids
    return []


def _encode_text(data: bytes, encoder: Tokenizer) -> list[int] | None:
    try:
        return encoder.encode(data.decode("utf-8"), add_special_tokens=False).ids
    except UnicodeDecodeError:
        return None


def _prefix_table(
    vocabulary: Vocabulary, prefixes: Prefixes
) -> tuple[list[int], list[int], list[int]]:
    """`prefix_entry`, `prefix_start`, `prefix_token` of `StepTables`, as lists."""
    entry = [-1] * vocabulary.num_tokens
    starts, tokens = [0], []
    for token, by_length in prefixes.items():
        entry[token] = len(starts) - 1
        for c in range(1, len(vocabulary.token_bytes[token])):
            tokens += by_length.get(c, [])
            starts.append(len(tokens))
    return entry, starts, tokens


def _prm_tokens(vocabulary: Vocabulary, prm_vocabulary: Vocabulary | None) -> list[int]:
    """The PRM's id of each token: the same id if it has the same bytes there."""
    if prm_vocabulary is None:
        return [NOT_READ] * vocabulary.num_tokens
    theirs = prm_vocabulary.token_bytes

    def found(token: int, data: bytes) -> int:
        if not data:
            return NOT_READ
        return token if token < len(theirs) and theirs[token] == data else BY_TEXT

    return [found(token, data) for token, data in enumerate(vocabulary.token_bytes)]


def _int_tensor(values: list[int], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _bytes_tensor(data: bytes, device: torch.device | str) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
