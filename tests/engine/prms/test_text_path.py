"""Steps that reach the PRM as text, through the host: the same meaning, whichever way they take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rsd_engine import Engine, Logistic, SamplingParams, Threshold
from rsd_engine.engine import make_loop
from rsd_engine.steps.policies import Policy
from tests.engine.harness.runs import (
    PROMPTS,
    Fresh,
    all_pages_free,
    decisions,
    generate,
    harsh,
    prm_rows,
    scores,
)
from tests.engine.harness.scripted import scripted
from tests.tiny_models import TinyModels

_CASES: list[tuple[float, int | None, Policy]] = [
    (0.0, None, Threshold(0.5)),
    (1.0, None, Threshold(0.5)),
    (1.0, 6, Logistic(8.0, 0.5)),
    (0.7, 9, Threshold(0.4)),
    (0.0, 5, Threshold(0.5)),
    (1.2, None, Logistic(8.0, 0.5)),
]
PARAMS = [
    SamplingParams(temperature=t, seed=s, max_tokens=40, max_step_tokens=m, policy=p)
    for s, (t, m, p) in enumerate(_CASES)
]


@pytest.fixture(scope="module")
def text_engine(other_prm: TinyModels) -> Iterator[Engine]:
    with Engine(**other_prm.sources(), max_num_seqs=4, device="cpu") as engine:
        assert engine.parts.core.loop.merges is None
        yield engine


@pytest.fixture
def forced_engine(tiny: TinyModels, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The tokenizer is shared, and the steps go through text anyway."""
    monkeypatch.setattr(make_loop, "build_merge_tables", lambda *_: None)
    with Engine(**tiny.sources(), max_num_seqs=4, device="cpu") as engine:
        assert engine.parts.core.loop.merges is None
        yield engine


def test_both_ways_give_the_same(engine: Engine, forced_engine: Engine) -> None:
    assert engine.parts.core.loop.merges is not None
    by_table = generate(engine, PROMPTS, PARAMS)
    by_text = generate(forced_engine, PROMPTS, PARAMS)
    rewards = []
    for one, two in zip(by_table, by_text, strict=True):
        assert decisions(one) == decisions(two)
        assert scores(one) == pytest.approx(scores(two), abs=1e-5)
        counted = [result.metrics.prm for result in (one, two)]
        assert len({prm.tokens_read + prm.cached_tokens for prm in counted}) == 1
        rewards += scores(two)
    assert len(rewards) > 25


@pytest.mark.parametrize("roughly", [False, True], ids=["plain", "preempted"])
def test_a_prm_with_a_tokenizer_of_its_own(text_engine: Engine, roughly: bool) -> None:
    before = text_engine.num_preemptions
    if roughly:
        with harsh(text_engine):
            results = generate(text_engine, PROMPTS, PARAMS)
        assert text_engine.num_preemptions > before
    else:
        results = generate(text_engine, PROMPTS, PARAMS)
    fresh, count = Fresh(text_engine), 0
    for result in results:
        for row, reward in zip(prm_rows(text_engine, result), scores(result), strict=True):
            assert reward == pytest.approx(fresh.reward(row), abs=1e-5)
            count += 1
    assert count > 25
    assert any(step.rejected for result in results for step in result.outputs[0].steps)
    assert any(step.source == "draft" for result in results for step in result.outputs[0].steps)
    assert all_pages_free(text_engine)


def test_independence_on_the_text_path(text_engine: Engine) -> None:
    together = generate(text_engine, PROMPTS, PARAMS)
    for prompt, params, result in zip(PROMPTS, PARAMS, together, strict=True):
        [alone] = generate(text_engine, [prompt], params)
        assert decisions(alone) == decisions(result)


def test_a_stop_token_that_completes_a_delimiter(engine: Engine, text_engine: Engine) -> None:
    """The PRM reads the step up to the delimiter, neither more nor less."""
    for one in (engine, text_engine):
        blank = one.get_tokenizer().convert_tokens_to_ids("ĊĊ")
        params = SamplingParams(temperature=0.0, stop_token_ids=[blank], policy=Threshold(0.0))
        with scripted(one, "abc\n\nd</s>"):
            [result] = generate(one, ["x"], params)
        assert result.outputs[0].stop_reason == blank and result.outputs[0].text == "abc"
        [row] = prm_rows(one, result)
        assert scores(result) == pytest.approx([Fresh(one).reward(row)], abs=1e-5)
