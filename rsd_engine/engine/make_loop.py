"""Puts the loop together: the forwards of the models, tables of their vocabularies, buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from rsd_engine.engine.memory_estimate import MAX_ROWS
from rsd_engine.engine.models import ModelSet, WriterModel
from rsd_engine.engine.rewards.scorers import confidence_kind
from rsd_engine.loop.rsd import Forward, Loop, Score
from rsd_engine.memory.budget import PoolLayout
from rsd_engine.memory.page_pool import PagePool
from rsd_engine.roofline.guesses import GuessCosts, guesses_at_rate
from rsd_engine.steps.merge_tables import build_merge_tables, settles_ends
from rsd_engine.steps.tables import build_step_tables
from rsd_kernels import ops
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.state.enums import RATE_STEPS, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import StepTables


def make_loop(
    models: ModelSet,
    pool: PagePool,
    layout: PoolLayout,
    state: SlotState,
    delimiters: Sequence[str],
    text_ends: bool,
    max_guesses: int,
    device: torch.device,
) -> Loop:
    """The parts of the program: models bound to their pages, tables, room for a pass.

    Args:
        models: loaded.
        pool: of pages.
        layout: of it.
        state: of the slots, new.
        delimiters: that end a step.
        text_ends: whether the ends of kept steps are read as the tokens of their text.
        max_guesses: that a pass of the target verifies.
        device: of the state.
    """
    places = state.num_slots + max_guesses
    prm, logits = models.prm, _logits(models, places, device)
    confidence = confidence_kind(models.scorer)
    forwards, score = _passes(models, pool, layout, state, logits)
    vocabulary, on_device = models.main.vocabulary, None
    prm_vocabulary = prm.shared_vocabulary if prm and not models.separate else None
    if not models.separate and (prm is None or prm_vocabulary or text_ends):
        on_device = build_merge_tables(vocabulary, delimiters, device)

    def tables(writer: WriterModel) -> StepTables:
        return build_step_tables(
            writer.vocabulary,
            prm_vocabulary,
            delimiters,
            prm.format.separator_ids if prm else (),
            device,
            before_step=prm.format.before_step if prm else (),
            num_transient=prm.format.num_transient if prm else 0,
            as_written=prm is not None and prm.format.as_written,
        )

    state.guesses_at_rate.copy_(torch.tensor(_paying_guesses(models, device)))
    by_writer = models.of_vocabularies(tables)
    ends = None
    if text_ends:  # so the writers share a vocabulary
        of_all = next(iter(by_writer.values()))
        ends = EndRules(of_all, on_device if settles_ends(vocabulary, delimiters) else None)
    return Loop(
        state=state,
        batch=RowBatch.allocate(MAX_ROWS, state.num_slots, device, places),
        tables=by_writer,
        merges=on_device if prm is None or prm_vocabulary else None,
        tokens_per_page=layout.tokens_per_page,
        forwards=forwards,
        score=score,
        logits=logits,
        pages=pool.pages,
        confidence=confidence,
        prm_kv=prm.kv if prm else Role.DRAFT if confidence else Role.PRM,
        ends=ends,
    )


def _logits(models: ModelSet, num_places: int, device: torch.device) -> dict[Role, Tensor]:
    """Room for the logits of each writer; all have the same memory, for they never run at once."""
    here = {role: writer for role, writer in models.writers.items() if writer.loaded}
    num_ids = {role: models.num_ids_of(writer) for role, writer in here.items()}
    room = torch.empty(num_places * max(num_ids.values()), device=device)
    return {role: room[: num_places * ids].view(num_places, ids) for role, ids in num_ids.items()}


def _passes(
    models: ModelSet,
    pool: PagePool,
    layout: PoolLayout,
    state: SlotState,
    logits: Mapping[Role, Tensor],
) -> tuple[dict[Role, Forward], Score | None]:
    """The models bound to their pages: the forward of each role, and the op after the PRM's."""
    shapes = models.kv_shapes
    views = {shape: pool.view(shape) for shape in set(shapes.values())}
    pages = {role: views[shape] for role, shape in shapes.items()}
    tables = state.page_table
    forwards: dict[Role, Forward] = {
        role: partial(w.model.logits, kv=pages[role], page_table=tables[role], out=logits[role])
        for role, w in models.writers.items()
        if w.loaded
    }
    if models.prm is None or models.prm.loaded is None:
        return forwards, None
    prm, kv = models.prm.model, models.prm.kv
    forwards[Role.PRM] = partial(prm.read, kv=pages[kv], page_table=tables[kv])
    scratch, sizes = ops.score_scratch(state, prm.head), layout.tokens_per_page
    return forwards, partial(
        prm.score, state=state, tokens_per_page=sizes, scratch=scratch, prm_kv=kv
    )  # fmt: skip


def _paying_guesses(models: ModelSet, device: torch.device) -> list[int]:
    """How many guesses of the draft pay, by the share of them that is right."""
    loaded = {role: writer.loaded for role, writer in models.writers.items()}
    nbytes = {role: model.weight_bytes for role, model in loaded.items() if model}
    draft, target = nbytes.get(Role.DRAFT, 0), nbytes.get(Role.TARGET, 0)
    costs = GuessCosts.of_weights(draft, target, device.type)
    return guesses_at_rate(costs, steps=RATE_STEPS)
