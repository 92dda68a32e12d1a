"""How many pages the pool gets from the memory that is there, and the sizes that follow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from rsd_engine.memory.page_pool import KVShape
from rsd_kernels.state.enums import LOG_HEADER, LOGPROB_WORDS, MAX_CUT_TOKENS, MAX_LOGPROBS, Role
from rsd_kernels.state.slots import SlotSizes, pages_for

MIN_TOKENS_PER_PAGE = 16  # of the role with the largest tokens; pages of the others hold more
_CPU_SHARE = 0.25  # of the free memory, when the user names no budget
_ALIGNMENT = 256  # bytes; what `PagePool` asks of a page


@dataclass(frozen=True)
class PageLayout:
    """The size of a page, the tokens that it holds of each role, and the pages of a sequence."""

    page_bytes: int
    tokens_per_page: tuple[int, int, int]  # by Role; 1 for an absent role
    pages_per_sequence: int  # of all roles, at full length
    page_multiple: int = field(default=1, kw_only=True)  # divides the tokens of a page, each role


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


def size_pool(
    shapes: dict[Role, KVShape],
    max_len: dict[Role, int],
    *,
    max_num_seqs: int,
    max_model_len: int,
    kv_cache_memory_bytes: int | None,
    gpu_memory_utilization: float,
    device: torch.device,
    page_multiple: int = 1,
) -> PoolLayout:
    """The pool that fits the budget, but no larger than all slots at full length can use.

    `shapes`, `max_len` and `page_multiple` are those of `page_layout`, the other arguments those of
    `Engine`. Without `kv_cache_memory_bytes` the budget is what is free.

    Raises:
        ValueError: the budget cannot hold one request of `max_model_len` tokens.
    """
    layout = page_layout(shapes, max_len, page_multiple)
    per_sequence = layout.pages_per_sequence
    budget = kv_cache_memory_bytes
    if budget is None:
        budget = _free_bytes(device, gpu_memory_utilization)
    num_pages = min(budget // layout.page_bytes, per_sequence * max_num_seqs)
    if num_pages < per_sequence:
        raise ValueError(
            f"kv_cache_memory_bytes={budget} cannot hold one request of "
            f"max_model_len={max_model_len} tokens, which needs "
            f"{per_sequence * layout.page_bytes} bytes; "
            "raise kv_cache_memory_bytes or lower max_model_len"
        )
    return PoolLayout(**vars(layout), num_pages=num_pages)


def slot_sizes(layout: PoolLayout, max_len: Mapping[Role, int], max_num_seqs: int) -> SlotSizes:
    """Sizes of the slot state that goes with a pool; `max_len` as in `page_layout`.

    A context may briefly be `MAX_CUT_TOKENS` longer, where a token is cut at a delimiter.
    """
    longest = max(length for role, length in max_len.items() if role != Role.PRM) + MAX_CUT_TOKENS
    words_per_token = 1 + LOGPROB_WORDS + 2 * MAX_LOGPROBS
    return SlotSizes(
        num_slots=max_num_seqs,
        max_len=longest,
        prm_max_len=max_len.get(Role.PRM, 1),
        pages_per_role=max(
            pages_for(length + MAX_CUT_TOKENS, layout.tokens_per_page[role])
            for role, length in max_len.items()
        ),
        num_pages=layout.num_pages,
        log_words=max_num_seqs * (LOG_HEADER + longest * words_per_token),
    )


def _free_bytes(device: torch.device, gpu_memory_utilization: float) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - (1 - gpu_memory_utilization) * total))
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(_CPU_SHARE * available)
