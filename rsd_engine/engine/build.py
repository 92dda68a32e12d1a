"""Puts an engine together: models, pool, state and program; says what fits."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from rsd_engine.arguments import check_flag, check_integer, check_number
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.mailbox import open_mailbox
from rsd_engine.engine.device import resolve_device
from rsd_engine.engine.make_loop import make_loop
from rsd_engine.engine.memory_estimate import MAX_ROWS, ModelMemory
from rsd_engine.engine.memory_fit import MemoryFit, MemoryOptions, fit_memory
from rsd_engine.engine.memory_report import MemoryReport, report_memory
from rsd_engine.engine.model_sources import OpenOptions, named_sources
from rsd_engine.engine.models import (
    ModelSet,
    ModelSource,
    WriterModel,
    load_models,
    memory_of,
    open_models,
)
from rsd_engine.engine.remote.roles import find_servers, open_remote
from rsd_engine.engine.requests.rules import RequestRules, WriterTokens
from rsd_engine.engine.rewards.prm_options import STEP_DELIMITER, PrmFormatLike, PrmOptions
from rsd_engine.engine.rewards.scorers import (
    add_scorer,
    check_given,
    prepare_scorer,
    say_scorer,
)
from rsd_engine.engine.text_paths import (
    host_ends,
    may_settle_ends,
    text_bridges,
    translations,
)
from rsd_engine.loop.executors.factory import make_executor, resolve_executor
from rsd_engine.loop.rsd import build_program
from rsd_engine.memory.available import megabytes, told_when_full
from rsd_engine.memory.budget import PoolLayout, slot_sizes
from rsd_engine.memory.page_pool import PagePool
from rsd_engine.models.decoder import page_multiple
from rsd_engine.models.loader import check_dtype
from rsd_engine.steps.automaton import ByteAutomaton, build_automaton
from rsd_engine.steps.policies import Policy, Threshold, check_policy
from rsd_engine.steps.scorers import Scorer
from rsd_kernels.state.enums import MAX_DELIMITER_STATES, Role
from rsd_kernels.state.slots import ANY_ROWS, SlotSizes, SlotState

logger = logging.getLogger("rsd_engine")

STEP_ENDS = ("text", "tokens")
_MAX_BYTES = 2**63 - 1
ROW_BUCKETS = (1, 4, 16, 64)  # and MAX_ROWS: rows of the bodies of a graph


@dataclass(frozen=True)
class EngineParts:
    """The parts of a running engine."""

    models: ModelSet
    pool: PagePool
    core: EngineCore
    rules: RequestRules
    start_seconds: Mapping[str, float]  # by stage of the start, in order

    def memory(self) -> MemoryReport:
        """What the memory holds now; call it between launches."""
        return report_memory(self.models, self.pool, self.core.loop)


@torch.inference_mode(False)  # what is allocated in that mode cannot be written to outside of it
def build_engine(
    draft: ModelSource | None,
    target: ModelSource | None,
    prm: ModelSource | None,
    *,
    policy: Policy | None,
    device: str | torch.device,
    dtype: str | torch.dtype,
    max_num_seqs: int,
    max_model_len: int | None,
    kv_cache_memory_bytes: int | None,
    gpu_memory_utilization: float,
    step_delimiters: str | Sequence[str] | None,
    step_ends: str,
    opening: OpenOptions,
    executor: str,
    max_guesses: int,
    enable_prefix_caching: bool,
    prm_format: PrmFormatLike | None,
    prm_separator: str | None,
    scorer: Scorer | None,
) -> EngineParts:
    """See `Engine`."""
    options = _memory_options(
        max_num_seqs, max_model_len, kv_cache_memory_bytes, gpu_memory_utilization, max_guesses
    )
    if policy is not None:
        check_policy(policy)
    check_dtype(dtype)
    caches = check_flag("enable_prefix_caching", enable_prefix_caching)
    check_given(scorer, {"draft": draft, "target": target, "prm": prm})
    scored = prm is not None or scorer is not None
    sources = named_sources(draft, target, prm)
    draft, target, prm = sources.values()
    delimiters = _delimiters(step_delimiters, scored=scored)
    text_ends = _text_ends(step_ends) and scored and bool(delimiters)
    automaton = build_automaton(delimiters, MAX_DELIMITER_STATES, "step_delimiters")
    prm_options = PrmOptions(prm_format, prm_separator, delimiters)
    where = resolve_device(device)
    opening.check_computed(dtype, where)
    buckets = _row_buckets(resolve_executor(executor, where), where)
    clock = _StageClock()
    servers = find_servers(sources, scorer)
    opened = open_models(
        draft, target, prm,
        options=opening, prm_options=prm_options, device=where,
        scored=scorer is not None, guesses=options.max_guesses > 0,
    )  # fmt: skip
    remote = open_remote(servers, opened, prm_options)
    own = prepare_scorer(scorer, opened)
    memory = memory_of(opened, dtype, where)
    clock.end("read configs and tokenizers")
    context = own.context if own else None
    fit = fit_memory(
        memory, options, where, _page_multiple(memory, where), own=context, most=remote.max_len
    )
    positions = dict.fromkeys(opened, max(fit.max_len.values())) if own else fit.max_len
    models = load_models(opened, memory, device=where, max_rows=MAX_ROWS, max_positions=positions)
    models = add_scorer(remote.joined(models), scorer, own)
    clock.end("read weights")
    pool = _allocate_pool(fit.layout, where)
    sizes = slot_sizes(fit.layout, fit.max_len, options.max_num_seqs)
    sizes = replace(remote.sized(sizes, fit.model_len), row_buckets=buckets)
    advice = "lower max_num_seqs, max_model_len or kv_cache_memory_bytes"
    with told_when_full("state of the slots and graphs", fit.estimate.state, where, advice):
        state, mailbox = open_mailbox(SlotState.allocate(sizes, where))
        text_ends = text_ends and may_settle_ends(models)
        loop = make_loop(
            models, pool, fit.layout, state, delimiters, text_ends, options.max_guesses, where
        )
        clock.end("build")
        runs = make_executor(executor, build_program(loop), where)
        clock.end("warm up and capture")
    writer = remote.asked_for_steps(models)
    core = EngineCore(
        loop, runs, mailbox,
        text_bridges=text_bridges(models, loop), translate=translations(models),
        text_ends=host_ends(models, loop, delimiters), remote=remote.roles(writer),
        enable_prefix_caching=caches,
    )  # fmt: skip
    policy = policy or _default_policy(models)
    rules = _rules(models, policy, automaton, fit.model_len, sizes)
    rules = replace(
        rules,
        max_guesses=options.max_guesses,
        check_remote=writer.check if writer else None,
        remote=frozenset(servers),
    )
    parts = EngineParts(models, pool, core, rules, clock.seconds)
    if scorer is not None:
        say_scorer(models)
    else:
        _say_prm(models, fit)
    _say(parts, fit)
    return parts


class _StageClock:
    """Seconds of the stages of a start, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, stage: str) -> None:
        """The stage that began when the last one ended is over."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def _memory_options(
    max_num_seqs: int,
    max_model_len: int | None,
    kv_cache_memory_bytes: int | None,
    gpu_memory_utilization: float,
    max_guesses: int,
) -> MemoryOptions:
    """The arguments as plain numbers; ValueError if one is not allowed."""
    length, num_bytes = max_model_len, kv_cache_memory_bytes
    if length is not None:
        length = check_integer("max_model_len", length)
    if num_bytes is not None:
        num_bytes = check_integer("kv_cache_memory_bytes", num_bytes, 1, _MAX_BYTES)
    return MemoryOptions(
        check_integer("max_num_seqs", max_num_seqs, 1, MAX_ROWS),
        length,
        num_bytes,
        check_number(
            "gpu_memory_utilization", gpu_memory_utilization, 0, 1, "in (0, 1]", open_low=True
        ),
        check_integer("max_guesses", max_guesses, 0, MAX_ROWS),
    )


def _delimiters(asked: str | Sequence[str] | None, *, scored: bool) -> Sequence[str]:
    """Steps matter where they are scored; a model alone writes on, as it would anywhere else."""
    if asked == "auto":
        return (STEP_DELIMITER,) if scored else ()
    return (asked,) if isinstance(asked, str) else asked or ()


def _text_ends(step_ends: str) -> bool:
    if step_ends not in STEP_ENDS:
        allowed = " or ".join(map(repr, STEP_ENDS))
        raise ValueError(f"step_ends is {step_ends!r}; it must be {allowed}")
    return step_ends == "text"


def _row_buckets(executor: str, device: torch.device) -> tuple[int, ...]:
    """A graph reads a fixed number of rows; eager on a CPU reads exactly those of the pass."""
    exact = executor in ("eager", "profile") and device.type == "cpu"
    return ANY_ROWS if exact else (*ROW_BUCKETS, MAX_ROWS)


def _page_multiple(memory: Mapping[Role, ModelMemory], device: torch.device) -> int:
    """What the tokens of a page must be a multiple of, for the attention of every model."""
    dtypes = {model.dtype for model in memory.values()}
    return max(page_multiple(dtype, device) for dtype in dtypes)


def _allocate_pool(layout: PoolLayout, device: torch.device) -> PagePool:
    advice = (
        "lower kv_cache_memory_bytes or gpu_memory_utilization, or max_num_seqs or max_model_len"
    )
    with told_when_full("the KV pages", layout.num_bytes, device, advice):
        return PagePool(layout.num_pages, layout.page_bytes, device, layout.page_multiple)


def _default_policy(models: ModelSet) -> Policy:
    if models.scorer is not None:
        threshold = models.scorer.default_threshold
        logger.info("policy: threshold %.3g, the default of %s", threshold, models.scorer.title)
        return Threshold(threshold)
    if models.prm is None:
        return Threshold()
    family = models.prm.family
    logger.info("policy: threshold %g, the default of %s", family.threshold, family.name)
    return Threshold(family.threshold)


def _say_prm(models: ModelSet, fit: MemoryFit) -> None:
    if models.prm is None or models.prm.loaded is None:
        return
    family, form = models.prm.family, models.prm.format
    text = form.encoder.decode(list(form.separator_ids), skip_special_tokens=False)
    logger.info(
        "prm: read as %s, with rewards from %g to %g and a threshold of %g by default; %r follows "
        "every step", family.name, *family.reward_range, family.threshold, text,
    )  # fmt: skip
    if fit.max_len[Role.PRM] < fit.model_len:
        logger.warning(
            "prm: its context holds %d tokens, the writers' %d; an output ends where it is full, "
            "unless its request says otherwise (prm_overflow)",
            fit.max_len[Role.PRM], fit.model_len,
        )  # fmt: skip


def _rules(
    models: ModelSet,
    policy: Policy,
    delimiters: ByteAutomaton,
    model_len: int,
    sizes: SlotSizes,
) -> RequestRules:
    return RequestRules(
        modes=models.modes,
        policy=policy,
        delimiters=delimiters,
        writers=models.of_vocabularies(partial(_writer_tokens, models)),
        max_model_len=model_len,
        prm_max_len=sizes.prm_max_len,
        max_num_seqs=sizes.num_slots,
        prm_format=models.prm.format if models.prm else None,
    )


def _writer_tokens(models: ModelSet, writer: WriterModel) -> WriterTokens:
    return WriterTokens(
        vocabulary=writer.vocabulary,
        num_ids=models.num_ids_of(writer),
        eos_ids=models.eos_ids_of(writer),
        encode=partial(writer.tokenizer.encode, add_special_tokens=False),
    )


def _say(parts: EngineParts, fit: MemoryFit) -> None:
    models, memory, layout = parts.models, parts.memory(), fit.layout
    full = layout.num_pages // layout.pages_per_sequence
    logger.info(
        "KV: %d pages of %d bytes (%.1f MB); %d requests of max_model_len=%d tokens fit at once",
        layout.num_pages, layout.page_bytes, layout.num_bytes / 1e6, full, fit.model_len,
    )  # fmt: skip
    weights = sum(memory.weights.values())
    logger.info(
        "memory: %s of weights, %s of pages, %s of activations, %s of state, log and tables",
        megabytes(weights), megabytes(memory.pool), megabytes(memory.activations),
        megabytes(memory.state + memory.log + memory.tables),
    )  # fmt: skip
    backend = next(iter(models.models.values())).decoder.ops.backend
    logger.info(
        "attention: %s; executor: %s; modes: %s; prefix cache: %s",
        backend, parts.core.executor.name, ", ".join(models.modes),
        "on" if parts.core.prefixes.enabled else "off",
    )  # fmt: skip
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in parts.start_seconds.items())
    logger.info("start: %s", stages)
