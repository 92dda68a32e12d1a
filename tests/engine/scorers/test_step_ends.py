"""The ends of kept steps where a scorer decides: as text has them, or as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_engine import Confidence, Constant, Engine, SamplingParams, TargetJudge
from rsd_engine.demo import checkpoint_dir
from rsd_engine.engine import build
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, harsh
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


@pytest.mark.parametrize("chance", [1.0, 0.5])
def test_steps_that_a_confidence_keeps(
    newline_models: TinyModels, chance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a chance of 1 all steps are the draft's: they are decided in its own pass."""
    with opened(newline_models, chance) as engine:
        assert engine.parts.core.loop.end_merges is not None
        found = generate(engine, PROMPTS, PARAMS)
        wanted = [decisions(result) for result in found]
        with harsh(engine):
            assert [decisions(r) for r in generate(engine, PROMPTS, PARAMS)] == wanted
        assert bool(engine.parts.core.state.shortened.any())
        assert all_pages_free(engine) and engine.check_integrity() == []
    sources = {step.source for result in found for step in result.outputs[0].steps}
    assert sources == ({"draft"} if chance == 1 else {"draft", "target"})
    with opened(newline_models, chance, "simulated-loop") as engine:
        assert [decisions(r) for r in generate(engine, PROMPTS, PARAMS)] == wanted
    monkeypatch.setattr(build, "settles_ends", lambda *_: False)
    with opened(newline_models, chance) as engine:  # by way of text, on the host
        assert engine.parts.core.loop.end_merges is None
        assert [decisions(r) for r in generate(engine, PROMPTS, PARAMS)] == wanted


def test_a_judge_reads_what_the_writers_wrote(caplog: pytest.LogCaptureFixture) -> None:
    draft, target = (Path(checkpoint_dir(role)) for role in ("draft", "target"))
    with Engine(draft, target, scorer=TargetJudge(), max_num_seqs=1, device="cpu") as engine:
        assert not engine.parts.core.loop.text_ends
    assert "step ends: read as they were written" in caplog.text
