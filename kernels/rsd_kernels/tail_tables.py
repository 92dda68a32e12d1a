r"""Tables that let the device tokenise the end of a step anew, without text.

Taking a delimiter off a token is not enough: of `}$.\n\n` a Qwen tokenizer makes `}$` and `.\n\n`,
but of `}$.` alone `}` and `$.`. One step in ten of worked mathematics ends like that. Only tokens
of the delimiter's own word (pre-token) can change, so only those are tokenised anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

JOINS_NEXT = 1  # no word ends between this token and a delimiter
MAX_WORD_BYTES = 1024  # a longer word keeps the tokens it has: merging takes quadratic time
JOINS_PREVIOUS = 2  # no word ends between this token and a JOINS_NEXT token before it


@dataclass(frozen=True)
class TailTables:
    """V ids, M merges of a byte-level BPE. Merges stand in order of `merge_pair`, for bisection."""

    flags: Tensor  # [V] uint8: JOINS_NEXT | JOINS_PREVIOUS
    byte_token: Tensor  # [256] int32: the token of one byte; -1 if no flagged token has that byte
    merge_pair: Tensor  # [M] int64: left * 2**32 + right
    merge_rank: Tensor  # [M] int32: the lowest is merged first
    merge_token: Tensor  # [M] int32: what left and right become
