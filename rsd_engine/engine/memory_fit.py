"""The context and the pages that fit into the memory, decided before any weights are read."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from rsd_engine.arguments import shown
from rsd_engine.engine.memory_estimate import (
    MemoryEstimate,
    ModelMemory,
    OwnContext,
    by_role_name,
    estimate_models,
    longest_contexts,
)
from rsd_engine.memory.available import available_bytes, megabytes
from rsd_engine.memory.budget import PoolLayout
from rsd_kernels.state.enums import Role

logger = logging.getLogger("rsd_engine")

SHORTEST_CONTEXT = 256  # tokens; where no more fits, it is better not to start
CPU_SHARE = 0.25  # for contexts, of what models leave: a CPU's memory is used by others too


@dataclass(frozen=True)
class MemoryOptions:
    """The arguments of `Engine` that decide how memory is used."""

    max_num_seqs: int
    max_model_len: int | None
    kv_cache_memory_bytes: int | None
    gpu_memory_utilization: float
    max_guesses: int = 0


@dataclass(frozen=True)
class MemoryFit:
    """What an engine gets: the longest context of writers and of each role, and the pages."""

    model_len: int
    max_len: Mapping[Role, int]
    layout: PoolLayout
    estimate: MemoryEstimate


@dataclass(frozen=True)
class _Candidate:
    """An engine with contexts of one length."""

    length: int
    estimate: MemoryEstimate
    options: MemoryOptions
    device: torch.device

    @property
    def room(self) -> int:
        """Bytes for contexts, pages and all; negative if not even the models fit."""
        left = self.estimate.pool + self.estimate.growing
        return left if self.device.type == "cuda" else int(CPU_SHARE * left)

    @property
    def page_budget(self) -> int:
        """Bytes for pages, maybe negative."""
        if self.options.kv_cache_memory_bytes is not None:
            return self.options.kv_cache_memory_bytes
        return self.room - self.estimate.growing

    @property
    def fits(self) -> bool:
        """Whether one request of full length has its pages."""
        return self.estimate.layout.sequence_bytes <= self.page_budget

    @property
    def is_modest(self) -> bool:
        """Whether it fits, and what contexts take beside pages stays within their room too."""
        return self.fits and self.estimate.growing <= self.room


def fit_memory(
    models: Mapping[Role, ModelMemory],
    options: MemoryOptions,
    device: torch.device,
    page_multiple: int = 1,
    available: int | None = None,
    own: OwnContext | None = None,
    most: int | None = None,
) -> MemoryFit:
    """Decides how long contexts are and how many pages there are.

    Without `max_model_len` a context is as long as draft and target allow, but no longer than the
    pages hold.

    Args:
        models: the model of each role.
        options: what the user asked for.
        device: what they will run on.
        page_multiple: as in `page_layout`.
        available: bytes that the engine may use; by default what the device has.
        own: the scorer, if it is none of the models.
        most: tokens that the context of a target on a server holds.

    Raises:
        ValueError: `max_model_len` is longer than draft and target allow, or the pages cannot hold
            one request of it.
        MemoryError: the models, or the pages that were asked for, do not fit.
    """
    if available is None:
        named_budget = options.kv_cache_memory_bytes is not None
        available = available_bytes(device, 1.0 if named_budget else options.gpu_memory_utilization)

    def candidate(length: int) -> _Candidate:
        found = estimate_models(
            models, available,
            max_num_seqs=options.max_num_seqs, max_model_len=length, page_multiple=page_multiple,
            own=own, max_guesses=options.max_guesses, on_gpu=device.type == "cuda",
        )  # fmt: skip
        return _Candidate(length, found, options, device)

    allowed = _allowed_length(models, options.max_model_len, own, most)
    shortest = options.max_model_len or min(SHORTEST_CONTEXT, allowed)
    least = candidate(shortest)
    if least.estimate.pool < 0:
        raise MemoryError(_too_large(least))
    if not least.fits:
        raise _too_long(least, _longest(1, shortest, candidate))
    chosen = least
    if options.max_model_len is None:
        chosen = candidate(max(shortest, _longest(shortest, allowed, candidate)))
    layout = chosen.estimate.layout.within(chosen.page_budget, options.max_num_seqs)
    if layout.num_bytes > chosen.estimate.pool:
        raise MemoryError(_too_many_pages(chosen, layout.num_bytes))
    if options.max_model_len is None:
        _tell_length(chosen, allowed)
    max_len = longest_contexts({r: m.config for r, m in models.items()}, chosen.length, own)
    return MemoryFit(chosen.length, max_len, layout, chosen.estimate)


def _allowed_length(
    models: Mapping[Role, ModelMemory],
    asked: int | None,
    own: OwnContext | None,
    most: int | None,
) -> int:
    writers = {role: model.config for role, model in models.items() if role != Role.PRM}
    taken = {own.role: own.num_transient} if own else {}
    allowed = min(c.max_position_embeddings - taken.get(r, 0) for r, c in writers.items())
    allowed = min(allowed, most or allowed)
    if asked is not None and not 2 <= asked <= allowed:
        raise ValueError(
            f"max_model_len must be in [2, {allowed}], the context of draft and target, "
            f"got {shown(asked)}"
        )
    return allowed


def _longest(low: int, high: int, candidate: Callable[[int], _Candidate]) -> int:
    """The longest length in [low, high] that fits, or `low` - 1."""
    lengths = range(low, high + 1)
    return low - 1 + bisect_left(lengths, True, key=lambda length: not candidate(length).is_modest)


def _too_large(least: _Candidate) -> str:
    found = least.estimate
    weights = by_role_name(found.weights)
    each = ", ".join(f"{name} {megabytes(size)}" for name, size in weights.items())
    more = ", raise gpu_memory_utilization" if least.device.type == "cuda" else ""
    return (
        f"the models need {megabytes(found.needed)} without KV pages ({each} of weights), and "
        f"{megabytes(found.available)} of memory are available on {least.device}; take smaller "
        "models or a dtype of fewer bytes, lower max_num_seqs or max_model_len"
        f"{more} or free memory"
    )


def _too_long(least: _Candidate, longest: int) -> Exception:
    options, asked = least.options, least.estimate.layout.sequence_bytes
    if options.kv_cache_memory_bytes is not None:
        return ValueError(
            f"kv_cache_memory_bytes={options.kv_cache_memory_bytes} cannot hold one request of "
            f"max_model_len={least.length} tokens, which needs {asked} bytes; raise "
            "kv_cache_memory_bytes or lower max_model_len"
        )
    message = (
        f"one request of max_model_len={least.length} tokens needs {megabytes(asked)} of KV "
        f"pages, and {_left_text(least)}; lower max_model_len ({longest} tokens fit), set "
        "kv_cache_memory_bytes or free memory"
    )
    return MemoryError(message) if options.max_model_len is None else ValueError(message)


def _too_many_pages(chosen: _Candidate, num_bytes: int) -> str:
    found = chosen.estimate
    return (
        f"kv_cache_memory_bytes={chosen.options.kv_cache_memory_bytes}: {megabytes(num_bytes)} of "
        f"KV pages and {megabytes(found.needed)} of weights and buffers are needed, and "
        f"{megabytes(found.available)} of memory are available on {chosen.device}; lower "
        "kv_cache_memory_bytes, max_num_seqs or max_model_len"
    )


def _tell_length(chosen: _Candidate, allowed: int) -> None:
    if chosen.length == allowed:
        logger.info("max_model_len: %d tokens, all that draft and target allow", allowed)
        return
    named = chosen.options.kv_cache_memory_bytes
    reason = (
        f"{_left_text(chosen)}; set kv_cache_memory_bytes to change it"
        if named is None
        else f"kv_cache_memory_bytes={named} holds no longer request"
    )
    logger.info(
        "max_model_len: %d tokens of the %d that draft and target allow: %s",
        chosen.length, allowed, reason,
    )  # fmt: skip


def _left_text(chosen: _Candidate) -> str:
    """How much is left for pages by default, and why."""
    found = chosen.estimate
    rest = "" if chosen.device.type == "cuda" else f"; {1 - CPU_SHARE:.0%} of the rest stay free"
    return (
        f"{megabytes(max(0, chosen.page_budget))} are left for KV pages "
        f"({megabytes(found.available)} available on {chosen.device}, {megabytes(found.needed)} "
        f"for weights and buffers{rest})"
    )
