"""What fails between two vocabularies ends its own request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rsd_engine import SamplingParams, Threshold
from rsd_engine.core.writer_contexts import WriterContexts
from rsd_engine.loop.program import Call
from rsd_engine.outputs import Errors
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import all_pages_free, decisions, generate
from tests.engine.two_vocabularies.families import Family

GOOD = ["What is 12 + 30?", "x"]
BAD = "the one that fails"
PARAMS = SamplingParams(temperature=1.0, seed=2, max_tokens=40, max_step_tokens=6,
                        ignore_eos=True, policy=Threshold(0.5))  # fmt: skip


def test_a_step_that_cannot_be_translated(
    one_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = one_family.engine
    wanted = generate(engine, GOOD, PARAMS)
    ids = engine.parts.models.writers[Role.DRAFT].tokenizer(BAD)["input_ids"]
    real = WriterContexts.__init__

    def init(self: Any, request: Any, translate: Any) -> None:
        bad: Any = {role: lambda ids: [1 // 0] for role in Role}
        real(self, request, bad if [*request.prompt] == ids else translate)

    monkeypatch.setattr(WriterContexts, "__init__", init)
    *good, bad = generate(engine, [*GOOD, BAD], PARAMS)
    assert [decisions(r) for r in good] == [decisions(r) for r in wanted]
    assert bad.metrics.errors == Errors(bridge=1)
    assert "bringing the steps to the other writer failed: ZeroDivision" in str(
        bad.outputs[0].error
    )
    assert engine.check_integrity() == [] and all_pages_free(engine)


@pytest.mark.parametrize("op", ["DRAFT.write", "TARGET.write", "PRM.score"])
@pytest.mark.parametrize("at", [1, 4])
def test_a_passing_failure_changes_nothing(one_family: Family, op: str, at: int) -> None:
    engine, run, count = one_family.engine, Call.run, 0
    wanted = generate(engine, GOOD, PARAMS)

    def fails() -> None:
        raise MemoryError

    def once(call: Call) -> None:
        nonlocal count
        count += call.name == op
        run(replace(call, fn=fails) if call.name == op and count == at else call)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Call, "run", once)
        results = generate(engine, GOOD, PARAMS)
    assert count > at
    assert [decisions(r) for r in results] == [decisions(r) for r in wanted]
    assert engine.check_integrity() == [] and all_pages_free(engine)
