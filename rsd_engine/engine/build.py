"""Put an engine together: models, pool, state and program; say what fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from rsd_engine.arguments import check_integer, check_number
from rsd_engine.core.engine_core import EngineCore, HostBridge
from rsd_engine.core.mailbox import open_mailbox
from rsd_engine.engine.memory_estimate import MAX_ROWS, max_length_of
from rsd_engine.engine.memory_report import MemoryReport, megabytes, report_memory
from rsd_engine.engine.models import ModelSet, ModelSource, load_models
from rsd_engine.engine.requests import RequestRules
from rsd_engine.loop.executors.factory import make_executor, resolve_executor
from rsd_engine.loop.rsd import Forward, Loop, build_program
from rsd_engine.memory.budget import PoolLayout, size_pool, slot_sizes
from rsd_engine.memory.page_pool import PagedKV, PagePool
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.loader import check_dtype
from rsd_engine.steps.automaton import build_automaton
from rsd_engine.steps.merge_tables import build_merge_tables
from rsd_engine.steps.policies import Policy, check_policy
from rsd_engine.steps.tables import build_step_tables
from rsd_engine.steps.text_bridge import TextBridge
from rsd_kernels import ops
from rsd_kernels.state.enums import MAX_DELIMITER_STATES, Finish, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import ANY_ROWS, SlotState

logger = logging.getLogger("rsd_engine")

ROW_BUCKETS = (1, 4, 16, 64)  # and MAX_ROWS: rows of the bodies of a graph


@dataclass(frozen=True)
class EngineParts:
    """The parts of a running engine."""

    models: ModelSet
    pool: PagePool
    core: EngineCore
    rules: RequestRules
    parameters: dict[Role, int]

    def memory(self) -> MemoryReport:
        """Where the memory is now; call it between launches."""
        return report_memory(self.models, self.pool, self.core.loop)


def build_engine(
    draft: ModelSource | None,
    target: ModelSource | None,
    prm: ModelSource | None,
    *,
    policy: Policy,
    device: str | torch.device,
    dtype: str | torch.dtype,
    max_num_seqs: int,
    max_model_len: int | None,
    kv_cache_memory_bytes: int | None,
    gpu_memory_utilization: float,
    step_delimiters: str | Sequence[str] | None,
    revision: str | None,
    executor: str,
) -> EngineParts:
    """See `Engine`."""
    check_integer("max_num_seqs", max_num_seqs, 1, MAX_ROWS)
    if max_model_len is not None:
        check_integer("max_model_len", max_model_len)
    if kv_cache_memory_bytes is not None:
        check_integer("kv_cache_memory_bytes", kv_cache_memory_bytes, 1)
    check_number("gpu_memory_utilization", gpu_memory_utilization, 0, 1, "in (0, 1]", open_low=True)
    check_policy(policy)
    check_dtype(dtype)
    delimiters = (step_delimiters,) if isinstance(step_delimiters, str) else step_delimiters or ()
    automaton = build_automaton(delimiters, MAX_DELIMITER_STATES, "step_delimiters")
    where = _device(device)
    buckets = _row_buckets(resolve_executor(executor, where), where)
    models = load_models(
        draft, target, prm, dtype=dtype, device=where, revision=revision, max_rows=MAX_ROWS
    )
    model_len = _model_len(models, max_model_len)
    max_len = _max_lengths(models, model_len)
    layout = size_pool(
        models.kv_shapes,
        max_len,
        max_num_seqs=max_num_seqs,
        max_model_len=model_len,
        kv_cache_memory_bytes=kv_cache_memory_bytes,
        gpu_memory_utilization=gpu_memory_utilization,
        device=where,
        page_multiple=max(m.decoder.ops.page_multiple for m in models.models.values()),
    )
    pool = _allocate_pool(layout, where)
    sizes = replace(slot_sizes(layout, max_len, max_num_seqs), row_buckets=buckets)
    state, mailbox = open_mailbox(SlotState.allocate(sizes, where))
    loop = _loop(models, pool, layout, state, delimiters, where)
    core = EngineCore(
        loop,
        make_executor(executor, build_program(loop), where),
        mailbox,
        text_bridge=_text_bridge(models) if loop.merges is None else None,
    )
    rules = RequestRules(
        modes=_modes(models),
        policy=policy,
        delimiters=automaton,
        eos_ids=models.eos_ids,
        num_ids=models.num_ids,
        max_model_len=model_len,
        prm_max_len=max_len.get(Role.PRM, 0),
        prm_format=models.prm.format if models.prm else None,
    )
    parameters = {role: model.num_parameters for role, model in models.models.items()}
    parts = EngineParts(models, pool, core, rules, parameters)
    _say(parts, layout, model_len)
    return parts


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: no usable CUDA device here; use 'cpu' or 'auto'")
    if found.type == "cuda":
        _check_index(device, found.index)
    return found


def _check_index(device: str | torch.device, index: int | None) -> None:
    """Kernels go to the current device of whichever thread launches them: one device a process."""
    count, current = torch.cuda.device_count(), torch.cuda.current_device()
    if (index or 0) >= count:
        raise ValueError(
            f"device={device!r}: this machine has {count} CUDA devices, counted from 0"
        )
    if index not in (None, current):
        raise ValueError(
            f"device={device!r}: kernels are launched on the current device, cuda:{current}; set "
            f"CUDA_VISIBLE_DEVICES={index} before the process starts and use 'cuda'"
        )


def _row_buckets(executor: str, device: torch.device) -> tuple[int, ...]:
    """A graph reads a fixed number of rows; Python on a CPU reads exactly those of the pass."""
    exact = executor in ("eager", "profile") and device.type == "cpu"
    return ANY_ROWS if exact else (*ROW_BUCKETS, MAX_ROWS)


def _model_len(models: ModelSet, asked: int | None) -> int:
    allowed = min(w.model.config.max_position_embeddings for w in models.writers.values())
    if asked is None:
        return allowed
    if not 2 <= asked <= allowed:
        raise ValueError(
            f"max_model_len must be in [2, {allowed}], the context of draft and target, got {asked}"
        )
    return asked


def _max_lengths(models: ModelSet, model_len: int) -> dict[Role, int]:
    return {
        role: max_length_of(role, model_len, model.config) for role, model in models.models.items()
    }


def _allocate_pool(layout: PoolLayout, device: torch.device) -> PagePool:
    try:
        return PagePool(layout.num_pages, layout.page_bytes, device, layout.page_multiple)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        raise MemoryError(
            f"the KV pages need {layout.num_bytes} bytes and {device} does not have them; lower "
            "kv_cache_memory_bytes or gpu_memory_utilization, or max_num_seqs or max_model_len"
        ) from error


def _loop(
    models: ModelSet,
    pool: PagePool,
    layout: PoolLayout,
    state: SlotState,
    delimiters: Sequence[str],
    device: torch.device,
) -> Loop:
    prm = models.prm
    merges = None
    if prm is None or prm.shares_vocabulary:
        merges = build_merge_tables(models.main.tokenizer, delimiters, device)
    if prm and merges is None:
        logger.info("prm: its steps are tokenised from text, on the host (slower)")
    tables = build_step_tables(
        models.main.tokenizer,
        prm.tokenizer if prm and prm.shares_vocabulary else None,
        delimiters,
        prm.format.separator_ids if prm else (),
        device,
    )
    kv = {role: pool.view(shape) for role, shape in models.kv_shapes.items()}
    logits = torch.empty(state.num_slots, models.num_ids, device=device)
    forwards: dict[Role, Forward] = {}
    for role, writer in models.writers.items():
        forwards[role] = partial(_write, writer.model, kv[role], state.page_table[role], logits)
    if prm:
        forwards[Role.PRM] = partial(_read, prm.model, kv[Role.PRM], state.page_table[Role.PRM])
    return Loop(
        state=state,
        batch=RowBatch.allocate(MAX_ROWS, state.num_slots, device),
        tables=tables,
        merges=merges,
        tokens_per_page=layout.tokens_per_page,
        forwards=forwards,
        decide=_decide(prm.model, state, layout.tokens_per_page) if prm else _decide_nothing,
        logits=logits,
    )


def _write(
    model: LanguageModel,
    kv: PagedKV,
    page_table: Tensor,
    logits: Tensor,
    batch: RowBatch,
) -> None:
    model.logits(batch, kv, page_table, logits[: batch.num_seqs])


def _read(model: RewardModel, kv: PagedKV, page_table: Tensor, batch: RowBatch) -> None:
    model.decoder.forward(batch, kv, page_table)


def _decide(
    model: RewardModel, state: SlotState, tokens_per_page: tuple[int, int, int]
) -> Callable[[RowBatch], None]:
    """Scores the hidden rows that the PRM's forward has left, and decides, in one op."""
    scratch = ops.score_scratch(state, model.scoring)

    def decide(batch: RowBatch) -> None:
        hidden = model.decoder.activations.hidden[: batch.num_rows]
        ops.score(state, batch, hidden, model.scoring, tokens_per_page, scratch)

    return decide


def _decide_nothing(batch: RowBatch) -> None:
    raise AssertionError(f"a pass of {batch.num_rows} rows to be scored, and there is no PRM")


def _text_bridge(models: ModelSet) -> HostBridge | None:
    prm = models.prm
    if prm is None:
        return None
    steps = TextBridge(models.main.tokenizer, prm.tokenizer, prm.format.separator_ids)

    def bridge(step: list[int], delimiter_bytes: int, finish: Finish) -> list[int]:
        if finish == Finish.STOP_TOKEN and not delimiter_bytes:
            step = step[:-1]
        return steps.step_tokens(step, delimiter_bytes)

    return bridge


def _modes(models: ModelSet) -> tuple[str, ...]:
    if models.prm:
        return ("rsd", "target", "draft")
    return tuple(role.name.lower() for role in models.writers)


def _say(parts: EngineParts, layout: PoolLayout, model_len: int) -> None:
    models, memory = parts.models, parts.memory()
    full = layout.num_pages // layout.pages_per_sequence
    logger.info(
        "KV: %d pages of %d bytes (%.1f MB); %d requests of max_model_len=%d tokens fit at once",
        layout.num_pages, layout.page_bytes, layout.num_bytes / 1e6, full, model_len,
    )  # fmt: skip
    weights = sum(memory.weights.values())
    logger.info(
        "memory: %s of weights, %s of pages, %s of activations, %s of state, log and tables",
        megabytes(weights), megabytes(memory.pool), megabytes(memory.activations),
        megabytes(memory.state + memory.log + memory.tables),
    )  # fmt: skip
    backend = models.main.model.decoder.ops.backend
    logger.info(
        "attention: %s; executor: %s; modes: %s",
        backend, parts.core.executor.name, ", ".join(_modes(models)),
    )  # fmt: skip
