"""Races of the kernels, and whether one would be found. Run by `test_races.py`.

`conftest` watches every other file of checks in the interpreter too; here barriers are left out,
and the programs of a launch run in other orders.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton.language as tl

import rsd_kernels
from rsd_kernels.aot.launches import MODEL_SHAPES, forward_launches
from rsd_kernels.aot.loop_launches import loop_launches
from rsd_kernels.attention import attend
from rsd_kernels.attention import kernel as paged_attention
from rsd_kernels.embedding.kernel import embed
from rsd_kernels.fork import kernel as fork
from rsd_kernels.grouped.matrix import ValueKind
from rsd_kernels.norm import kernel as rms_norm
from rsd_kernels.retokenise import kernel as retokenise
from rsd_kernels.reward import accept as reward_accept
from rsd_kernels.reward import kernel as reward
from rsd_kernels.reward import scores as reward_scores
from rsd_kernels.reward.heads import ValueHead
from rsd_kernels.rollback import kernel as rollback
from rsd_kernels.schedule import advance
from rsd_kernels.schedule import kernel as schedule
from rsd_kernels.state.enums import NUM_ROLES, ConfidenceKind, Finish, HostRequest, Phase
from rsd_kernels.state.pages import take_pages
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState, pages_for
from rsd_kernels.tick_clock import kernel as tick_clock
from rsd_kernels.write import kernel as write
from tests.kernels.activation import kernel_checks as activation_checks
from tests.kernels.attention import kernel_checks as attention_checks
from tests.kernels.bridge import kernel_checks as bridge_checks
from tests.kernels.fork import kernel_checks as fork_checks
from tests.kernels.grouped.cases import Case as GroupedCase
from tests.kernels.grouped.cases import check as check_grouped
from tests.kernels.guess import kernel_checks as ngram_checks
from tests.kernels.harness import parts
from tests.kernels.harness.broken import broken
from tests.kernels.harness.shadow import Op, run_shadowed
from tests.kernels.interpreter.race_rules import Race
from tests.kernels.interpreter.races import short, watching
from tests.kernels.linear import kernel_checks as linear_checks
from tests.kernels.norm import kernel_checks as norm_checks
from tests.kernels.qkv import kernel_checks as qkv_checks
from tests.kernels.retokenise.contexts import kept
from tests.kernels.reward import kernel_checks as reward_checks
from tests.kernels.rollback import kernel_checks as rollback_checks
from tests.kernels.sample import guess_checks
from tests.kernels.sample import kernel_checks as sample_checks

WATCHES_ITSELF = True
CPU = torch.device("cpu")
KERNELS = Path(str(rsd_kernels.__file__)).parent


@pytest.fixture
def with_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels stamp their times as on a device, with a clock of whole numbers."""
    ticks = itertools.count(1000)
    for module in (schedule, write, reward):
        monkeypatch.setattr(module, "interpreting", lambda: False)
    for module in (schedule, advance, tick_clock):
        monkeypatch.setattr(module, "globaltimer", lambda: tl.full((), next(ticks), tl.int64))


def test_one_word_may_change_while_a_kernel_reads_it() -> None:
    """The host's: `aot/loop_launch_checks.py` sees that all threads go by one reading of it."""
    found = [path for path in KERNELS.rglob("*.py") if "volatile=True" in path.read_text()]
    assert [short(path) for path in found] == ["schedule/kernel.py"]


def test_kernels_read_one_word_of_the_host() -> None:
    """A read over the bus takes twice as long as one of the device's own memory."""
    reads = re.compile(r"tl\.load\(\s*state\.(host_request|log|log_end)\b")
    found = [read for path in KERNELS.rglob("*.py") for read in reads.findall(path.read_text())]
    assert found == ["host_request"]


def barriers() -> set[tuple[str, int]]:
    """Every `tl.debug_barrier` of the kernels."""
    return {
        (short(path), number)
        for path in KERNELS.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "tl.debug_barrier()" in line
    }


def rare_steps() -> None:
    """Words merged again, a full PRM context, a reward that is NaN."""
    made = bridge_checks.FAMILIES["math"]
    assert made.merges is not None
    for word in ("}$)", ""):
        state = bridge_checks.an_ended_step(made, word, 100)
        parts.bridge(state, bridge_checks.two_for_one(made.tables), made.merges)
    state = bridge_checks.an_ended_step(made, "a" * 9, 3)
    state.match_bytes.zero_()
    parts.bridge(state, made.tables, made.merges)
    assert int(state.finish) == Finish.PRM_FULL
    state.phase.fill_(Phase.SCORE)
    batch = RowBatch.allocate(1, 1, CPU)
    batch.seq_complete.fill_(1)
    state.num_seqs.fill_(1)
    head = ValueHead(torch.ones(8), 1e-6, torch.ones(1, 8), torch.zeros(1))
    reward.score(state, batch, torch.full((1, 8), torch.nan), head, (1, 1, 1))
    assert int(state.nan_rewards) == 1


def rare_schedules() -> None:
    """Slots that lack pages, and a host that asks for a return."""
    state = SlotState.allocate(SlotSizes(3, 8, 8, 4, 8, 1000), CPU)
    state.phase.fill_(Phase.DRAFT)
    state.active.fill_(1)
    state.length.fill_(5)
    state.tick_cap.fill_(9)
    state.num_free.fill_(4)
    batch = RowBatch.allocate(16, 3, CPU)
    schedule.schedule(state, batch, (2, 2, 2))
    assert state.lacks_pages.tolist() == [0, 1, 1]
    state.host_request.fill_(HostRequest.RETURN)
    schedule.schedule(state, batch, (2, 2, 2))
    assert int(state.pass_role) == NUM_ROLES


def shared_pages() -> None:
    """Given up by two slots in one launch, and by one that was to write them; candidates."""
    rollback_checks.test_a_page_that_two_slots_give_up()
    fork_checks.test_a_role_without_rows_has_given_up_pages_nevertheless()
    state = SlotState.allocate(SlotSizes(3, 8, 8, 4, 8, 1000), CPU)
    state.ended.fill_(1)
    state.finish.fill_(Finish.ERROR)
    state.group.copy_(torch.tensor([1, 1, 0]))
    state.group_left.fill_(2)
    parts.end_step(state, (2, 2, 2))
    assert state.phase.tolist() == [Phase.CANDIDATE, Phase.CHOICE, Phase.CANDIDATE]


def forks() -> None:
    """One slot becomes three, the last without copies of partial pages: none is left."""
    state = SlotState.allocate(SlotSizes(3, 8, 8, 4, 6, 1000), CPU)
    state.length.fill_(6)
    for role, read in enumerate((3, 2, 1)):
        state.kv_len[role, 1] = read
        take_pages(state, role, 1, pages_for(read, 2))
    state.num_logprobs.fill_(2)
    pages = torch.arange(6 * 40000).view(6, 40000).to(torch.uint8)
    fork.fork(state, pages, 1, [2, 0], (2, 2, 2))
    assert state.num_pages.tolist() == [[1, 2, 2], [1, 1, 1], [0, 1, 1]]
    assert int(state.num_free) == 0 and pages[4:].equal(pages[[1, 3]])


def draws() -> None:
    """Three sequences with penalties and cut-offs, and one that is not complete."""
    state = sample_checks.a_state(4, 1)
    state.repetition_penalty.fill_(1.3)
    logits = sample_checks.some_logits(4, 5000, 2.0, 1)
    sample_checks.sampled(state, sample_checks.a_batch(state, 1), logits)


def rare_draws() -> None:
    """A draw from the whole vocabulary, with logprobs, where the output may not stop yet."""
    state = sample_checks.a_state(1, 0)
    for name, value in (("repetition_penalty", 1), ("temperature", 1), ("top_p", 1), ("top_k", 0)):
        getattr(state, name).fill_(value)
    state.num_logprobs.fill_(2)
    state.min_length.fill_(sample_checks.ROW)
    logits = sample_checks.some_logits(1, 70, 1.0, 0)
    sample_checks.sampled(state, sample_checks.a_batch(state, 0), logits)


def guesses() -> None:
    """Made by all who can, read at several places, kept and forgotten."""
    ngram_checks.test_who_is_asked()
    ngram_checks.test_ngrams(24, 20)
    guess_checks.test_many_slots_at_once()
    guess_checks.test_the_draft_guesses_until_it_has_enough()


@pytest.mark.usefixtures("with_clocks")
def test_every_barrier_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing is therefore found, in scenes that meet all of them."""
    loop_ops: dict[str, Op] = {
        "schedule": schedule.schedule, "write": write.write, "truncate_kv": rollback.truncate_kv,
    }  # fmt: skip
    with watching(try_without_barriers=True) as watch:
        run_shadowed(monkeypatch, loop_ops, 1, count=3)
        by_draft = ConfidenceKind.LOGPROB
        run_shadowed(monkeypatch, loop_ops, 4, count=2, confidence=by_draft, ends="device")
        reward_checks.score_a_run("value", monkeypatch, 3)
        draws()
        rare_steps()
        rare_schedules()
        rare_draws()
        step_ends()
        guesses()
        shared_pages()
        forks()
        attention_checks.split(monkeypatch)
        attention_checks.check(attention_checks.CASES["chunks"])
    assert watch.barriers.keys() == barriers()
    assert [where for where, needed in watch.barriers.items() if not needed] == []


def forwards() -> None:
    """Small cases of the kernels of a forward, of sampling and of rewards."""
    table, token = torch.randn(5, 1500), torch.tensor([4, 9, 0], dtype=torch.int32)
    embed(table, token, out=torch.empty(3, 1500))
    norm_checks.test_rms_norm(3, 24, torch.float32)
    norm_checks.test_rows_norm(torch.float32)
    norm_checks.test_rms_norm_adds(torch.float32)
    activation_checks.test_gate_mul(True, 1100, torch.float32)
    linear_checks.test_a_residual_may_be_the_output(1)
    linear_checks.test_a_residual_may_be_the_output(5)
    linear_checks.test_norm_gate_up(2, 33, 515, " bias")
    for num_rows in (3, 20):
        check_grouped(GroupedCase(ValueKind.INT4, num_rows, fused="residual"), torch.float32)
    for name in ("three rows", "norm of heads"):  # one launch, and two
        case = qkv_checks.Case(**qkv_checks.CASES[name])
        qkv_checks.check(case, torch.float32)
    attention_checks.check(attention_checks.CASES["chunks"])
    for kind in reward_checks.HEADS:
        reward_checks.test_reward_and_accept(kind, torch.float32, 17, 40)
    draws()


def wide_kernels() -> set[str]:
    """Every kernel that ships with more than one program."""
    shape = MODEL_SHAPES["Qwen2.5-0.5B"]
    launches = [s.launch for rows in (1, 256) for s in forward_launches("", shape, rows)]
    launches += loop_launches().values()
    return {launch.kernel.__name__ for launch in launches if math.prod(launch.grid) > 1}


def test_the_order_of_programs_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backwards and shuffled they leave the same bits."""
    attention_checks.split(monkeypatch)
    with watching(orders=True) as watch:
        forwards()
        bridges()
        step_ends()
        guesses()
        forks()
    assert watch.reordered >= wide_kernels()


def bridges() -> None:
    """Two slots whose steps end with the same word."""
    made = bridge_checks.FAMILIES["math"]
    assert made.merges is not None
    one = bridge_checks.an_ended_step(made, "}$)", 100)
    two = SlotState.allocate(SlotSizes(2, 1300, 100, 4, 8, 64), CPU)
    for name in ("tokens", "length", "ended", "match_bytes"):
        getattr(two, name).copy_(getattr(one, name).expand_as(getattr(two, name)))
    parts.bridge(two, made.tables, made.merges)
    assert torch.equal(two.prm_tokens[0], two.prm_tokens[1])


def step_ends() -> None:
    """Two slots whose steps end alike: with a full stop, and a blank line of two tokens."""
    made = bridge_checks.FAMILIES["math"]
    tokens = made.vocabulary.token_bytes
    ids = [tokens.index(piece) for piece in (b"we", b".", b"\n", b"\n")]
    begins_with_a_newline = [ids[2], *ids]
    state = kept([(ids, 0), (ids, 0), (begins_with_a_newline, 0)])
    retokenise.retokenise(state, made.tables, made.merges)
    assert state.length.tolist() == [2, 2, 5]
    assert state.phase.tolist() == [Phase.DRAFT, Phase.DRAFT, Phase.WAIT_HOST]
    state.phase.fill_(Phase.DRAFT)
    retokenise.retokenise(state, made.tables, None)
    assert state.phase.tolist() == [Phase.DRAFT, Phase.DRAFT, Phase.WAIT_HOST]


def cut_back(module: Any) -> None:
    sizes = (3, 4)
    module.rollback(**rollback_checks.paged(2, 9, sizes, 0), tokens_per_page=sizes)


def normed(module: Any) -> None:
    module.rms_norm(torch.randn(4, 24), torch.ones(24), 1e-6)


def attended(module: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged_attention, "attend_kernel", module.attend_kernel)
        attention_checks.check(attention_checks.CASES["chunks"])


@pytest.mark.parametrize(
    ("module", "right", "wrong", "run"),
    [
        (rollback, "    tl.debug_barrier()  # every", "    # every", cut_back),
        (rms_norm, "out + i_row * stride_out", "out + i_row // 2 * stride_out", normed),
        (rms_norm, "stride_x + o, mask=m, other=0.0", "stride_x + o", normed),
        (attend, "o_part * tl.num_programs(2) + i_split", "o_part * tl.num_programs(2)", attended),
        (attend, "tl.debug_barrier()", "# no barrier", attended),
        (attend, 'sem="acq_rel", scope="gpu"', 'sem="acq_rel", scope="cta"', attended),
    ],
    ids=[
        "no barrier",
        "one row of two programs",
        "no mask",
        "one part of all splits",
        "part not released",
        "released to few",
    ],
)
def test_a_race_in_a_kernel_is_found(
    module: Any,
    right: str,
    wrong: str,
    run: Callable[[Any], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention_checks.split(monkeypatch)
    with watching():
        run(module)
        with pytest.raises(Race):
            run(broken(module, tmp_path, right, wrong))


def test_relu_by_maximum_would_hide_a_hidden_row_of_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = reward_checks.test_a_reward_that_is_no_number_is_never_accepted
    check("classes")
    right, wrong = "tl.where(b_inner < 0.0, 0.0, b_inner)", "tl.maximum(b_inner, 0.0)"
    module = broken(reward_scores, tmp_path, right, wrong)
    monkeypatch.setattr(reward_accept, "inner_launch", module.inner_launch)
    with pytest.raises(AssertionError):
        check("classes")
