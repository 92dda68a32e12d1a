"""Tables of the vocabulary: the device finds step ends and extends PRM contexts without text.

Built once on the host from the tokenizers; read by `sample_append` and `bridge`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepTables:
    """V is the number of ids that may be sampled: the tokenizer's size, not the padded head's.

    Prefix table: the canonical tokens of the first c bytes of token t, 1 <= c < len(t), are
    `prefix_token[prefix_start[e] : prefix_start[e + 1]]` with e = prefix_entry[t] + c - 1. Tokens
    that no delimiter can cut or strip have `prefix_entry[t] == -1`. An empty range means that those
    bytes have no tokens (they are not valid UTF-8), and the token is left whole.
    """

    token_byte: Tensor  # [total bytes] uint8: the bytes of all tokens, end to end
    token_start: Tensor  # [V + 1] int32: token t is token_byte[token_start[t]:token_start[t + 1]]
    prefix_entry: Tensor  # [V] int32: first entry of token t, -1 if none
    prefix_start: Tensor  # [entries + 1] int32
    prefix_token: Tensor  # [total] int32: ids of the drafting vocabulary
    prm_token: Tensor  # [V] int32: the PRM's id of the same token; or NOT_READ, or BY_TEXT
    separator: Tensor  # [k] int32: PRM ids that end a step; the reward is read at the last one
    before_step: Tensor  # [j] int32: PRM ids in front of every step but the first
    num_transient: int  # of the separator's last ids: out of the context again once they are read
    # 1: the PRM reads steps as they were written, delimiters too, and `prm_token` maps no id
    as_written: int


NOT_READ = -1  # in `prm_token`: the token has no text, and the PRM never sees it
# The PRM has no such token: it reads the letters. How they join the text around them the device
# cannot know, so the host writes a step with such a token, by way of text.
BY_TEXT = -2

JOINS_NEXT = 1  # no word ends between this token and a delimiter
JOINS_PREVIOUS = 2  # no word ends between this token and a JOINS_NEXT token before it
# The rest serve to tokenise the end of a step again where the writers read it (`retokenise`).
ENDS_LINE = 4  # its last character is a newline
STARTS_LINE = 8  # its first one is
UNCERTAIN = 16  # of its neighbour alone one cannot tell whether a word ends between them
UNSETTLES = 32  # after a delimiter, it may change the delimiter's tokens
MAX_WORD_BYTES = 1024  # a longer word keeps the tokens it has: merging takes quadratic time


@dataclass(frozen=True)
class MergeTables:
    """V ids, M merges of a byte-level BPE, sorted by `merge_pair` for bisection."""

    flags: Tensor  # [V] uint8: JOINS_NEXT and so on
    byte_token: Tensor  # [256] int32: the token of one byte; -1 if no flagged token has that byte
    merge_pair: Tensor  # [M] int64: left * 2**32 + right
    merge_rank: Tensor  # [M] int32: the lowest is merged first
    merge_token: Tensor  # [M] int32: what left and right become
