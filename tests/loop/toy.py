"""A toy vocabulary and scripted models: the loop without a transformer.

One token is one byte, so the tables are written by hand; models are functions of the row so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone, StepDecided
from rsd_engine.core.host_steps import HostBridge, HostEnds
from rsd_engine.core.mailbox import open_mailbox
from rsd_engine.core.slots import SlotRequest
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.device_loop import DeviceLoopExecutor
from rsd_engine.loop.executors.eager import EagerExecutor
from rsd_engine.loop.program import Block, OpFailed
from rsd_engine.loop.rsd import Loop, build_program
from rsd_engine.steps.automaton import build_automaton
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.reward import loop_twin
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import (
    MAX_DELIMITER_STATES,
    MAX_STOP_STATES,
    ConfidenceKind,
    Mode,
    Role,
    Speculation,
)
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import ANY_ROWS, SlotSizes, SlotState
from rsd_kernels.state.tables import (
    ENDS_LINE,
    JOINS_NEXT,
    JOINS_PREVIOUS,
    STARTS_LINE,
    UNCERTAIN,
    UNSETTLES,
    MergeTables,
    StepTables,
)
from tests.page_checks import check_integrity

if TYPE_CHECKING:
    from tests.loop.two_vocabularies import Vocabularies

CHARS = "abcdefghijkl.\n"
EOS = len(CHARS)
NUM_IDS = EOS + 1
SEPARATOR = 99  # only on the PRM row
NEWLINE = CHARS.index("\n")

WRITERS = (Role.DRAFT, Role.TARGET)

Writer = Callable[[tuple[int, ...]], Sequence[float]]  # row so far -> logits
Scorer = Callable[[tuple[int, ...]], float]  # PRM row so far -> reward
MakeExecutor = Callable[[Block, int], Executor]  # program, ticks a launch


def encode(text: str) -> tuple[int, ...]:
    signs = {"$": EOS, "|": SEPARATOR}
    return tuple(signs[c] if c in signs else CHARS.index(c) for c in text)


def decode(ids: Sequence[int]) -> str:
    return "".join("$" if i == EOS else "|" if i == SEPARATOR else CHARS[i] for i in ids)


def toy_tables() -> StepTables:
    start = [*range(len(CHARS) + 1), len(CHARS)]
    return StepTables(
        token_byte=torch.tensor([ord(c) for c in CHARS], dtype=torch.uint8),
        token_start=torch.tensor(start, dtype=torch.int32),
        prefix_entry=torch.full((NUM_IDS,), -1, dtype=torch.int32),
        prefix_start=torch.zeros(1, dtype=torch.int32),
        prefix_token=torch.zeros(0, dtype=torch.int32),
        prm_token=torch.tensor([*range(len(CHARS)), -1], dtype=torch.int32),
        separator=torch.tensor([SEPARATOR], dtype=torch.int32),
        before_step=torch.zeros(0, dtype=torch.int32),
        num_transient=0,
        as_written=0,
    )


def around_steps(tables: StepTables) -> StepTables:
    """`h` before every step but the first; of `|ij` behind it `ij` leave the context again."""
    return replace(
        tables,
        separator=torch.tensor([SEPARATOR, *encode("ij")], dtype=torch.int32),
        before_step=torch.tensor(encode("h"), dtype=torch.int32),
        num_transient=2,
    )


def as_written(question: str) -> StepTables:
    """The PRM reads the writers' own tokens and a question, which leaves again."""
    ids = torch.tensor(encode(question), dtype=torch.int32)
    return replace(toy_tables(), separator=ids, num_transient=len(ids), as_written=1)


def toy_ends(context: list[int], _: int) -> tuple[int, list[int]]:
    """Two newlines become a full stop, and the signs before them, be they of earlier steps, `a`."""
    if len(context) < 7 or context[-2:] != [NEWLINE, NEWLINE]:
        return len(context), []
    return len(context) - 6, list(encode("aaaa."))


def toy_end_merges() -> MergeTables:
    """Two newlines at an end become a full stop, and that goes where there is a letter before it.

    Behind a `c` only the host can tell, nor can the device if a step begins with a newline.
    """
    letters, (c, stop) = torch.arange(CHARS.index(".")), encode("c.")
    ends = torch.tensor([stop, NEWLINE])
    merges = toy_merges()
    merges.flags[letters] = JOINS_NEXT
    merges.flags[c] |= UNCERTAIN
    merges.flags[ends] = JOINS_NEXT | JOINS_PREVIOUS | ENDS_LINE | STARTS_LINE
    merges.flags[NEWLINE] |= UNSETTLES
    merges.byte_token[[ord(sign) for sign in CHARS]] = torch.arange(EOS, dtype=torch.int32)
    left, right = torch.cat([letters, ends[1:]]), torch.cat([ends[:1].expand_as(letters), ends[1:]])
    return replace(
        merges,
        merge_pair=left << 32 | right,
        merge_rank=torch.arange(len(left), 0, -1, dtype=torch.int32),
        merge_token=torch.cat([letters, ends[:1]]).int(),
    )


def toy_merges() -> MergeTables:
    """No token shares a word with a delimiter."""
    return MergeTables(
        flags=torch.zeros(NUM_IDS, dtype=torch.uint8),
        byte_token=torch.full((256,), -1, dtype=torch.int32),
        merge_pair=torch.zeros(0, dtype=torch.int64),
        merge_rank=torch.zeros(0, dtype=torch.int32),
        merge_token=torch.zeros(0, dtype=torch.int32),
    )


class ToyKV:
    """The "K and V" of a token is the token itself: who reads another one's finds out."""

    def __init__(self, num_pages: int, tokens_per_page: tuple[int, int, int]) -> None:
        self._tokens_per_page = tokens_per_page
        self.pages = torch.full((num_pages, 4 * max(tokens_per_page)), 0xFF, dtype=torch.uint8)
        self._tokens = self.pages.view(torch.int32)  # [pages, tokens of a page]

    def read(
        self, state: SlotState, batch: RowBatch, role: Role, reader: Role | None = None
    ) -> None:
        """Writes the rows of a pass, then checks all that its sequences read before them.

        What is wrong fails the test: an ordinary error would end only a request.
        """
        rows = [r for r in range(batch.num_rows) if int(batch.page[r]) >= 0]
        for r in rows:
            page = int(batch.page[r])
            if int(state.page_owners[page]) != 1:
                pytest.fail(f"{role.name} writes to page {page}, which others own too")
            self._tokens[page, int(batch.offset[r])] = batch.token[r]
        context = state.prm_tokens if reader == Role.PRM else state.tokens
        size = self._tokens_per_page[role]
        for s in range(batch.num_seqs):
            slot, length = int(batch.seq_slot[s]), int(batch.seq_kv_len[s])
            table = state.page_table[role, slot, : -(-length // size)].long()
            held = self._tokens[table, :size].flatten()[:length]
            wanted = context[slot, :length]
            if not held.equal(wanted):
                pytest.fail(f"{role.name} of slot {slot} reads {held}, not {wanted}")


class ToyCore(EngineCore):
    """An assertion that fails in an op fails the test: it would end one request, or be retried."""

    def _blame(self, failure: OpFailed) -> None:
        if isinstance(failure.__cause__, AssertionError):
            raise failure.__cause__
        super()._blame(failure)


def eager_executor(program: Block, ticks_per_launch: int) -> Executor:
    return EagerExecutor(program, ticks_per_launch=ticks_per_launch)


def toy_core(
    draft: Writer,
    target: Writer,
    reward_of: Scorer,
    *,
    num_slots: int = 4,
    num_pages: int = 400,
    tokens_per_page: tuple[int, int, int] = (3, 2, 5),
    max_len: int = 96,
    prm_max_len: int | None = None,
    max_rows: int = 16,
    ticks_per_launch: int = 64,
    text_bridge: HostBridge | None = None,
    vocabularies: Vocabularies | None = None,
    row_buckets: tuple[int, ...] = ANY_ROWS,
    make_executor: MakeExecutor = eager_executor,
    rule: BatchingRule = BatchingRule.MOST_READY,
    tables: StepTables | None = None,
    prm_kv: Role = Role.PRM,
    confidence: ConfidenceKind = ConfidenceKind.NONE,
    max_guesses: int = 0,
    enable_prefix_caching: bool = True,
    text_ends: HostEnds | None = None,
    end_merges: MergeTables | None = None,
) -> EngineCore:
    sizes = SlotSizes(
        num_slots=num_slots,
        max_len=max_len,
        prm_max_len=prm_max_len or 2 * max_len,
        pages_per_role=max_len,
        num_pages=num_pages,
        log_words=num_slots * 60 * max_len,
        row_buckets=row_buckets,
    )
    state, mailbox = open_mailbox(SlotState.allocate(sizes, torch.device("cpu")))

    shared = tables or toy_tables()
    num_ids = vocabularies.num_ids if vocabularies else dict.fromkeys(WRITERS, NUM_IDS)
    places = num_slots + max_guesses
    logits = {role: torch.full((places, num_ids[role]), torch.nan) for role in WRITERS}
    rewards = torch.full((num_slots,), torch.nan)
    kv = ToyKV(num_pages, tokens_per_page)

    def writer(role: Role, model: Writer) -> Callable[[RowBatch], None]:
        def forward(batch: RowBatch) -> None:
            logits[role].fill_(torch.nan)
            kv.read(state, batch, role)
            for p in range(batch.num_places):
                if not int(batch.place_position[p]):
                    continue  # padding
                slot, position = int(batch.place_slot[p]), int(batch.place_position[p])
                row = tuple(state.tokens[slot, :position].tolist())
                logits[role][p] = torch.tensor(model(row))

        return forward

    def read(batch: RowBatch) -> None:
        kv.read(state, batch, prm_kv, Role.PRM)
        for s, slot in enumerate(batch.seq_slot.tolist()):
            row = tuple(state.prm_tokens[slot, : int(batch.seq_kv_len[s])].tolist())
            rewards[s] = reward_of(row) if bool(batch.seq_complete[s]) else torch.nan

    def score(batch: RowBatch, ends: EndRules | None, words: Tensor | None) -> None:
        loop_twin.decide(state, batch, rewards, tokens_per_page, prm_kv, ends)

    forwards = {Role.DRAFT: writer(Role.DRAFT, draft), Role.TARGET: writer(Role.TARGET, target)}
    if not confidence:
        forwards[Role.PRM] = read
    bridges = dict.fromkeys(WRITERS, text_bridge) if text_bridge else None
    loop = Loop(
        state=state,
        batch=RowBatch.allocate(max_rows, num_slots, torch.device("cpu"), places),
        tables=vocabularies.tables if vocabularies else dict.fromkeys(WRITERS, shared),
        merges=None if text_bridge or vocabularies else toy_merges(),
        tokens_per_page=tokens_per_page,
        forwards=forwards,
        score=score,
        logits=logits,
        pages=kv.pages,
        rule=rule,
        prm_kv=prm_kv,
        confidence=confidence,
        ends=EndRules(shared, end_merges) if text_ends else None,
    )
    executor = make_executor(build_program(loop), ticks_per_launch)
    if vocabularies is None:
        return ToyCore(
            loop, executor, mailbox,
            text_bridges=bridges, text_ends=text_ends,
            enable_prefix_caching=enable_prefix_caching,
        )  # fmt: skip
    return ToyCore(
        loop, executor, mailbox,
        text_bridges=vocabularies.bridges, translate=vocabularies.translate,
        enable_prefix_caching=enable_prefix_caching,
    )  # fmt: skip


def toy_request(
    prompt: str = "ab",
    *,
    mode: Mode = Mode.RSD,
    max_tokens: int = 60,
    max_steps: int = 30,
    max_step_tokens: int = 60,
    min_tokens: int = 0,
    delimiters: Sequence[str] = ("\n\n",),
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    sample_index: int = 0,
    num_logprobs: int = -1,
    policy: tuple[int, float, float] = (PolicyKind.THRESHOLD, 0.5, 0.0),
    prm_prompt: str | None = None,
    prm_step_ids: int = 1,
    prm_transient: int = 0,
    speculation: Speculation = Speculation.NONE,
    guess_tokens: int = 0,
) -> SlotRequest:
    ids = encode(prompt)
    read = encode(prompt + "|" if prm_prompt is None else prm_prompt)
    return SlotRequest(
        prompt=ids,
        prm_prompt=read if mode == Mode.RSD else (),
        mode=mode,
        length_limit=len(ids) + max_tokens,
        max_steps=max_steps,
        max_step_tokens=max_step_tokens,
        min_length=len(ids) + min_tokens,
        delimiters=build_automaton(list(delimiters), MAX_DELIMITER_STATES, "step_delimiters"),
        stops=build_automaton(list(stop), MAX_STOP_STATES, "stop"),
        stop_tokens=(EOS,),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        sample_index=sample_index,
        num_logprobs=num_logprobs,
        policy=policy,
        prm_step_ids=prm_step_ids,
        prm_transient=prm_transient,
        speculation=speculation,
        guess_tokens=guess_tokens,
    )


def run(core: EngineCore, requests: Sequence[SlotRequest]) -> dict[int, list[Event]]:
    """Runs to the end, checking pages and cursors whenever no launch is changing them."""
    for key, request in enumerate(requests):
        core.add(key, request)
    events: dict[int, list[Event]] = {key: [] for key in range(len(requests))}
    for _ in range(20_000):
        if not core.has_work:
            break
        for event in core.next_events():
            events[event.key].append(event)
        if not (core.in_flight and isinstance(core.executor, DeviceLoopExecutor)):
            check_integrity(core.state, core.loop.tokens_per_page)
    assert not core.has_work, "the loop does not end"
    assert int(core.state.num_free) == core.state.free_pages.shape[0], "pages were not returned"
    return events


def story(
    events: Sequence[Event],
    decoder_of: Callable[[Role], Callable[[Sequence[int]], str]] = lambda role: decode,
) -> list[str]:
    """Events as short lines: `draft 0.90 kept: ab`, `... rejected: ...`, `done: STOP_TOKEN`."""
    lines = []
    for event in events:
        if isinstance(event, StepDecided):
            reward = "" if event.reward != event.reward else f" {event.reward:.2f}"
            text = decoder_of(event.source)(event.token_ids)
            lines.append(f"{event.source.name.lower()}{reward} {event.kind.name.lower()}: {text}")
        elif isinstance(event, RequestDone):
            lines.append(f"done: {event.finish.name if event.finish else 'ABORTED'}")
    return lines


def writes(steps: dict[str, str]) -> Writer:
    """A greedy writer of whole steps: after the row `key`, it writes `steps[key]` char by char."""

    def logits(row: tuple[int, ...]) -> list[float]:
        text = decode(row)
        for key, step in steps.items():
            if text.startswith(key) and step.startswith(text[len(key) :]) and text != key + step:
                token = encode(step[len(text) - len(key)])[0]
                return [5.0 if i == token else 0.0 for i in range(NUM_IDS)]
        raise AssertionError(f"the script has nothing after {text!r}")

    return logits
