"""The round of `docs/algorithm.md`, played: the table of cursors is what the loop leaves."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any, get_args

from rsd_engine import Engine, SamplingParams
from rsd_engine.demo import ModelRole, checkpoint_dir
from rsd_engine.loop.executors.eager import EagerExecutor
from rsd_engine.loop.program import Call, Node, Switch, calls
from rsd_engine.loop.rsd import build_program
from rsd_kernels import ops
from rsd_kernels.state.enums import Phase
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from tests.docs.documents import document

ALGORITHM = document("docs/algorithm.md")
QUESTION = re.search(r"'(Nora .*?)'", document("README.md").text)
SCORE = "the last op of the PRM"
# Rows of the table: the op that leaves the cursors so, and how often it ran before.
MOMENTS = {
    "step 1 kept": (SCORE, 0),
    "the draft's step ended": ("DRAFT.write", 27),  # 13 tokens, then 15
    "`schedule` of the PRM's pass": ("PRM.forward", 1),
    "`score`: rejected, rolled back": (SCORE, 1),
    "the target's first pass": ("TARGET.write", 0),
    "the target's step ended, kept": ("TARGET.write", 14),
    "the draft's next pass": ("DRAFT.write", 28),
}
# Named in the table of ops and no column of the state.
OTHERS = {"RowBatch", "logits"}


class Trace:
    """The cursors of slot 0 after every op."""

    def __init__(self, state: SlotState) -> None:
        self.state = state
        self.seen: dict[tuple[str, int], list[str]] = {}
        self.count: dict[str, int] = {}

    def watched(self, node: Node) -> Node:
        """The same node; its ops are recorded."""
        if isinstance(node, Call):
            return replace(node, fn=lambda: self._run(node))
        if isinstance(node, Switch):
            return replace(node, bodies=tuple(tuple(map(self.watched, b)) for b in node.bodies))
        return replace(node, body=tuple(map(self.watched, node.body)))

    def _run(self, call: Call) -> None:
        call.fn()
        number = self.count.get(call.name, 0)
        self.count[call.name] = number + 1
        self.seen[call.name, number] = self._cursors()

    def _cursors(self) -> list[str]:
        state = self.state
        columns = (state.length, state.committed, state.prm_length, state.prm_committed)
        by_role = (state.kv_len, state.num_pages)
        return [
            *(str(int(column[0])) for column in columns),
            *(", ".join(map(str, column[:, 0].tolist())) for column in by_role),
            str(int(state.num_free)),
            Phase(int(state.phase[0])).name,
        ]


def test_one_round_in_numbers() -> None:
    assert QUESTION is not None
    draft, target, prm = map(checkpoint_dir, get_args(ModelRole))
    with Engine(draft, target, prm, device="cpu", max_num_seqs=2) as engine:
        core = engine.parts.core
        trace = Trace(core.state)
        program = tuple(map(trace.watched, build_program(core.loop)))
        *_, score = (call.name for call in calls(program) if call.name.startswith("PRM."))
        core.executor = EagerExecutor(program)
        message = {"role": "user", "content": QUESTION[1]}
        engine.chat([message], SamplingParams(temperature=0.0), use_tqdm=False)
    rows: dict[str, Any] = {row[0]: row[1:] for row in ALGORITHM.table_after("The same in numbers")}
    assert set(rows) == set(MOMENTS)
    for name, (op, number) in MOMENTS.items():
        assert rows[name] == trace.seen[score if op == SCORE else op, number], name


def test_ops_and_columns_are_those_of_the_code() -> None:
    rows = ALGORITHM.table_after("            write")
    names = {field.name for kind in (SlotState, RowBatch) for field in fields(kind)}
    for op, reads, writes in rows:
        told = set(re.findall(r"`(\w+)`", reads + writes))
        assert told <= names | OTHERS, (op, told - names - OTHERS)
    target = checkpoint_dir("target")
    with Engine(target=target, device="cpu", max_num_seqs=1, max_guesses=1) as engine:
        program = build_program(engine.parts.core.loop)
    written = {call.name.rpartition(".")[2] for call in calls(program)}
    assert {row[0].split("`")[1] for row in rows} == {*written, "score"}
    assert hasattr(ops, "score")
