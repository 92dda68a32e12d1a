"""The pages of a pool, and the sizes of the slot state that goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rsd_engine.memory.page_pool import KVShape
from rsd_kernels.launch import ceil_div
from rsd_kernels.state.enums import LOG_HEADER, LOGPROB_WORDS, MAX_CUT_TOKENS, MAX_LOGPROBS, Role
from rsd_kernels.state.slots import SlotSizes, pages_for

MIN_TOKENS_PER_PAGE = 16  # of the role with the largest tokens; pages of the others hold more
_ALIGNMENT = 256  # bytes; what `PagePool` asks of a page


@dataclass(frozen=True)
class PageLayout:
    """The size of a page, the tokens that it holds of each role, and the pages of a sequence."""

    page_bytes: int
    tokens_per_page: tuple[int, int, int]  # by Role; 1 for an absent role
    pages_per_sequence: int  # of all roles, at full length
    page_multiple: int = field(default=1, kw_only=True)  # divides the tokens of a page, each role

    @property
    def sequence_bytes(self) -> int:
        """The pages of one sequence at full length."""
        return self.pages_per_sequence * self.page_bytes

    def within(self, num_bytes: int, max_num_seqs: int) -> PoolLayout:
        """The pool that fits `num_bytes`, no larger than all slots at full length can use."""
        most = self.pages_per_sequence * max_num_seqs
        return PoolLayout(**vars(self), num_pages=min(num_bytes // self.page_bytes, most))


@dataclass(frozen=True)
class PoolLayout(PageLayout):
    """The page pool of an engine: its pages and how many there are."""

    num_pages: int

    @property
    def num_bytes(self) -> int:
        return self.num_pages * self.page_bytes


def page_layout(
    shapes: Mapping[Role, KVShape], max_len: Mapping[Role, int], page_multiple: int = 1
) -> PageLayout:
    """The smallest pages that hold `MIN_TOKENS_PER_PAGE` tokens of every role.

    Args:
        shapes: what a token of each role needs.
        max_len: the longest context of each role, in tokens.
        page_multiple: the tokens of a page are a multiple of this, for every role.
    """
    largest = max(shape.bytes_per_token for shape in shapes.values())
    min_tokens = -(-MIN_TOKENS_PER_PAGE // page_multiple) * page_multiple
    page_bytes = -(-largest * min_tokens // _ALIGNMENT) * _ALIGNMENT
    tokens = {role: shape.tokens_in(page_bytes, page_multiple) for role, shape in shapes.items()}
    return PageLayout(
        page_bytes=page_bytes,
        tokens_per_page=(
            tokens.get(Role.DRAFT, 1),
            tokens.get(Role.TARGET, 1),
            tokens.get(Role.PRM, 1),
        ),
        pages_per_sequence=sum(pages_for(max_len[role], tokens[role]) for role in shapes),
        page_multiple=page_multiple,
    )


def slot_sizes(layout: PoolLayout, max_len: Mapping[Role, int], max_num_seqs: int) -> SlotSizes:
    """Sizes of the slot state that goes with a pool; `max_len` as in `page_layout`.

    A context may briefly be `MAX_CUT_TOKENS` longer, where a token is cut at a delimiter. Sizes
    that a kernel is compiled for are rounded up, so that engines share what is compiled.
    """
    longest = max(length for role, length in max_len.items() if role != Role.PRM) + MAX_CUT_TOKENS
    longest = shared_size(longest)
    words_per_token = 1 + LOGPROB_WORDS + 2 * MAX_LOGPROBS
    return SlotSizes(
        num_slots=max_num_seqs,
        max_len=longest,
        prm_max_len=max_len.get(Role.PRM, 1),
        pages_per_role=shared_size(
            max(
                pages_for(length + MAX_CUT_TOKENS, layout.tokens_per_page[role])
                for role, length in max_len.items()
            )
        ),
        num_pages=layout.num_pages,
        log_words=shared_size(max_num_seqs * (LOG_HEADER + longest * words_per_token)),
    )


def shared_size(size: int) -> int:
    """At least `size`: a multiple of 16, since Triton compiles a kernel for that fact."""
    return 16 * ceil_div(size, 16)
