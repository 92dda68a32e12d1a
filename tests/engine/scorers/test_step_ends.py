"""The ends of kept steps where a scorer decides: as text has them, or as they were written."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from rsd_engine import Confidence, Constant, Engine, SamplingParams, TargetJudge
from rsd_engine.demo import checkpoint_dir
from rsd_engine.engine import make_loop
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, harsh
from tests.engine.harness.scripted import replaced
from tests.tiny_models import TinyModels, make_tiny_models

PARAMS = SamplingParams(temperature=0.0, seed=4, max_tokens=100, ignore_eos=True)


@pytest.fixture(scope="module")
def newline_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Some of their steps end in two tokens where the text of a step has one."""
    return make_tiny_models(tmp_path_factory.mktemp("newlines"), seed=41)


def opened(models: TinyModels, chance: float, executor: str = "eager") -> Engine:
    return Engine(
        models.draft, models.target, scorer=Confidence(), policy=Constant(chance), device="cpu",
        max_num_seqs=8, executor=executor,
    )  # fmt: skip


def test_steps_that_a_confidence_keeps(
    newline_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(newline_models, 0.5) as engine:
        ends = engine.parts.core.loop.ends
        assert ends and ends.merges is not None
        found = generate(engine, PROMPTS, PARAMS)
        wanted = [decisions(result) for result in found]
        with harsh(engine):
            assert [decisions(r) for r in generate(engine, PROMPTS, PARAMS)] == wanted
        assert bool(engine.parts.core.state.shortened.any())
        assert all_pages_free(engine) and engine.check_integrity() == []
    sources = {step.source for result in found for step in result.outputs[0].steps}
    assert sources == {"draft", "target"}
    with opened(newline_models, 0.5, "simulated-loop") as engine:
        assert [decisions(r) for r in generate(engine, PROMPTS, PARAMS)] == wanted
    monkeypatch.setattr(make_loop, "settles_ends", lambda *_: False)
    with opened(newline_models, 0.5) as engine:  # by way of text, on the host
        ends = engine.parts.core.loop.ends
        assert ends and ends.merges is None
        assert [decisions(r) for r in generate(engine, PROMPTS, PARAMS)] == wanted


@pytest.mark.parametrize("way", ["device", "host"])
def test_a_step_of_the_draft_is_settled_once_it_is_kept(
    way: str, newline_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decided in the draft's own pass: no pass of another model settles its end."""
    if way == "host":
        monkeypatch.setattr(make_loop, "settles_ends", lambda *_: False)
    with opened(newline_models, 1.0) as engine:
        encode = partial(engine.get_tokenizer().encode, add_special_tokens=False)
        [dot], [blank], [joined] = encode("."), encode("\n\n"), encode(".\n\n")
        [[letter]] = [encode("a")]
        script = iter([letter, dot, blank, letter, letter])
        logits = engine.parts.core.loop.logits[Role.DRAFT]

        def forward(batch: RowBatch) -> None:
            logits[0] = 0.0
            logits[0, next(script)] = 30.0

        with replaced(engine, Role.DRAFT, forward):
            [result] = generate(engine, ["x"], replace(PARAMS, max_tokens=5))
        assert list(result.outputs[0].token_ids) == [letter, dot, blank, letter, letter]
        context = [*result.prompt_token_ids, letter, joined, letter, letter]
        state = engine.parts.core.state
        assert state.tokens[0, : int(state.length[0])].tolist() == context


def test_a_judge_reads_what_the_writers_wrote(caplog: pytest.LogCaptureFixture) -> None:
    draft, target = (Path(checkpoint_dir(role)) for role in ("draft", "target"))
    with (
        caplog.at_level(logging.INFO, "rsd_engine"),
        Engine(draft, target, scorer=TargetJudge(), max_num_seqs=1, device="cpu") as engine,
    ):
        assert engine.parts.core.loop.ends is None
    assert "step ends: read as they were written" in caplog.text
