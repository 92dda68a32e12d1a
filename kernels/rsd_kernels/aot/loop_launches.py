"""Every launch of a loop op, in the shapes that ship, to compile ahead of time.

Nothing is launched: the tensors are on device "meta" and have no memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from rsd_kernels.bridge import kernel as bridge
from rsd_kernels.end_step import kernel as end_step
from rsd_kernels.fork import kernel as fork
from rsd_kernels.guess import kernel as guess
from rsd_kernels.launch import Launch
from rsd_kernels.retokenise import kernel as retokenise
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.reward import accept as reward_accept
from rsd_kernels.reward import kernel as reward
from rsd_kernels.reward import scores as reward_scores
from rsd_kernels.reward.heads import ClassesHead, EnsembleHead, RewardHead, TwoClassHead, ValueHead
from rsd_kernels.rollback import kernel as rollback
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.schedule import kernel as schedule
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import ConfidenceKind, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import MergeTables, StepTables
from rsd_kernels.write import kernel as write
from rsd_kernels.write.rules import WriteRules

_META = torch.device("meta")
_TOKENS_PER_PAGE = (32, 16, 32)  # Qwen2.5 1.5B, 7B, 1.5B
_MAX_ROWS = 256
_MAX_GUESSES = 64  # of a pass
PAGE_BYTES = 16 * 57344  # 16 tokens of Qwen2.5-7B in 16 bits
_FORKS = range(4)  # the source and three targets

_VOCABULARY = 151936  # of Qwen2.5
_HIDDEN = {"1.5B": 1536, "7B": 3584}  # of a PRM


def loop_launches(num_slots: int = 16) -> dict[str, Launch]:
    """The launches by name, for `num_slots` slots."""
    sizes = SlotSizes(
        num_slots=num_slots, max_len=4096, prm_max_len=8192, pages_per_role=512,
        num_pages=8192, log_words=1 << 20,
    )  # fmt: skip
    state = SlotState.allocate(sizes, _META)
    batch = RowBatch.allocate(_MAX_ROWS, num_slots, _META)
    guessing = RowBatch.allocate(_MAX_ROWS, num_slots, _META, num_slots + _MAX_GUESSES)
    tokens_per_page = _TOKENS_PER_PAGE
    return {
        **{
            f"schedule_{rule.name.lower()}": schedule.schedule_launch(
                state, batch, tokens_per_page, rule
            )
            for rule in BatchingRule
        },
        "schedule_own_context": schedule.schedule_launch(
            state, batch, tokens_per_page, BatchingRule.MOST_READY, Role.TARGET
        ),
        "schedule_guesses": schedule.schedule_launch(
            state, guessing, tokens_per_page, BatchingRule.MOST_READY
        ),
        "guess": guess.guess_launch(state),
        "end_slot_step": end_step.end_slot_step_launch(state, 0, tokens_per_page),
        "end_slot_step_by_confidence": end_step.end_slot_step_launch(
            state, 0, tokens_per_page, ConfidenceKind.LOGPROB
        ),
        "truncate_kv": rollback.truncate_slot_launch(state, 0, (0, 0, 0), tokens_per_page),
        "rollback": rollback.rollback_launch(
            state.kv_len, state.num_pages, state.page_table, state.free_pages, state.num_free,
            state.page_owners, state.kv_len, tokens_per_page,
        ),
        **{f"fork_{i}": launch for i, launch in enumerate(_fork_launches(state))},
        **_reward_launches(state, batch),
        **_text_launches(state, batch),
    }  # fmt: skip


def _fork_launches(state: SlotState) -> list[Launch]:
    pages = torch.empty(state.free_pages.shape[0], PAGE_BYTES, dtype=torch.uint8, device=_META)
    return fork.fork_launches(state, pages, _FORKS, _TOKENS_PER_PAGE)


def _text_launches(state: SlotState, batch: RowBatch) -> dict[str, Launch]:
    """What follows the forwards of writers, over a vocabulary of Qwen2.5's size."""
    tables, merges = _step_tables(), _merge_tables()
    settling = {"ends_by_host": EndRules(tables, None), "ends": EndRules(tables, merges)}
    ends = settling["ends"]
    plain = WriteRules(tables, merges, _TOKENS_PER_PAGE)
    writes = {
        f"_{kind.name.lower()}": replace(plain, confidence=kind, ends=ends)
        for kind in (ConfidenceKind.LOGPROB, ConfidenceKind.ENTROPY)
    }
    writes |= {"_by_host": replace(plain, merges=None), "": plain}
    writes |= {f"_{name}": replace(plain, ends=rules) for name, rules in settling.items()}
    found = {
        f"write{name}_{i}": launch
        for name, rules in writes.items()
        for i, launch in enumerate(_write_launches(state, batch, rules, Role.DRAFT))
    }
    places = RowBatch.allocate(_MAX_ROWS, state.num_slots, _META, state.num_slots + _MAX_GUESSES)
    verifies = replace(plain, verifies=True, ends=ends)
    verifying = _write_launches(state, places, verifies, Role.TARGET)
    return {
        **{f"write_verifying_{i}": verifying[i] for i in (1, 2)},
        **found,
        **{
            f"retokenise_{name}": retokenise.retokenise_launch(
                state, rules, bridge.bridge_scratch(state)
            )
            for name, rules in settling.items()
        },
    }


def _write_launches(
    state: SlotState, batch: RowBatch, rules: WriteRules, role: Role
) -> list[Launch]:
    logits = torch.empty(batch.num_places, _VOCABULARY, dtype=torch.float32, device=_META)
    scratch = SampleScratch.allocate(state, _VOCABULARY, batch.num_places)
    return write.write_launches(
        state, batch, logits, role, rules, scratch, bridge.bridge_scratch(state)
    )


def _table(size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device=_META)


def _step_tables() -> StepTables:
    size = _VOCABULARY
    return StepTables(
        _table(1 << 20, torch.uint8), _table(size + 1), _table(size), _table(4096), _table(4096),
        _table(size), _table(1), _table(1), num_transient=1, as_written=0,
    )  # fmt: skip


def _merge_tables() -> MergeTables:
    size = _VOCABULARY
    return MergeTables(
        _table(size, torch.uint8), _table(256), _table(size, torch.int64), _table(size),
        _table(size),
    )  # fmt: skip


def _reward_launches(state: SlotState, batch: RowBatch) -> dict[str, Launch]:
    """Both heads, inside the engine and for other stacks."""
    num_seqs = batch.num_seqs
    whole = torch.empty(num_seqs, dtype=torch.int32, device=_META)
    real = torch.empty(num_seqs, dtype=torch.float32, device=_META)
    policy = {
        "policy_kind": whole, "policy_a": real, "policy_b": real, "uniform": real,
        "reward": real, "accept": whole,
    }  # fmt: skip
    launches: dict[str, Launch] = {}
    words, ends = bridge.bridge_scratch(state), EndRules(_step_tables(), _merge_tables())
    for size, width in _HIDDEN.items():
        rows = torch.empty(_MAX_ROWS, width, dtype=torch.bfloat16, device=_META)
        for kind, head in _heads(width).items():
            scratch = torch.empty(
                reward_scores.scratch_shape(head, num_seqs), dtype=torch.float32, device=_META
            )
            score = partial(
                reward.score_launches, state, batch, rows, head, _TOKENS_PER_PAGE, scratch, words
            )
            for i, launch in enumerate(score()):
                launches[f"score_{kind}_{size}_{i}"] = launch
            launches[f"score_{kind}_{size}_ends"] = score(ends=ends)[-1]
            theirs = reward_accept.reward_accept_launches(rows[:num_seqs], head, policy, scratch)
            for i, launch in enumerate(theirs):
                launches[f"reward_accept_{kind}_{size}_{i}"] = launch
    return launches


def _heads(width: int) -> dict[str, RewardHead]:
    def weight(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=_META)

    single = torch.float32
    return {
        "value": ValueHead(
            weight(width), 1e-6, weight(1, width, dtype=single), weight(1, dtype=single)
        ),
        "classes": TwoClassHead(
            weight(width), 1e-6, weight(width, width), weight(width), weight(2, width), weight(2)
        ),
        "ensemble": EnsembleHead.allocate(weight(width), 1e-6, torch.bfloat16, num_heads=32),
        "digits": ClassesHead.allocate(weight(width), 1e-6, torch.bfloat16, num_classes=10),
    }
