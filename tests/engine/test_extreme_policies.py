"""Accepting everything is the draft alone, rejecting everything the target alone.

A model alone reads its own tokens, so RSD must as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from rsd_engine import Constant, Engine, SamplingParams, Threshold
from tests.engine.harness.runs import PROMPTS, generate
from tests.tiny_models import TinyModels


@pytest.fixture(scope="module")
def engine_of_tokens(tiny: TinyModels) -> Iterator[Engine]:
    with Engine(**tiny.sources(), step_ends="tokens", max_num_seqs=4, device="cpu") as engine:
        yield engine


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("policy", "mode"),
    [(Threshold(0.0), "draft"), (Constant(1.0), "draft"), (Threshold(1.1), "target"),
     (Constant(0.0), "target")],
)  # fmt: skip
def test_extreme_policies_equal_one_model_alone(
    engine_of_tokens: Engine, temperature: float, policy: Threshold | Constant, mode: str
) -> None:
    rsd = [
        SamplingParams(temperature=temperature, seed=s, max_tokens=36, max_step_tokens=10,
                       policy=policy)
        for s in range(len(PROMPTS))
    ]  # fmt: skip
    one = [replace(params, mode=mode) for params in rsd]  # type: ignore[arg-type]
    results = generate(engine_of_tokens, [*PROMPTS, *PROMPTS], [*rsd, *one])
    half = len(PROMPTS)
    for mixed, alone in zip(results[:half], results[half:], strict=True):
        ours, theirs = mixed.outputs[0], alone.outputs[0]
        assert ours.token_ids == theirs.token_ids
        assert ours.text == theirs.text
        assert ours.finish_reason == theirs.finish_reason
        assert [s.token_ids for s in ours.steps] == [s.token_ids for s in theirs.steps]
        assert {s.source for s in ours.steps} == {mode}
        assert all((s.rejected is not None) == (mode == "target") for s in ours.steps)
        assert all(s.reward is None and s.rejected is None for s in theirs.steps)
        rate = 1.0 if mode == "draft" else 0.0
        assert mixed.metrics.acceptance_rate == rate and alone.metrics.acceptance_rate is None
        assert alone.metrics.prm.passes == 0
    assert len({result.outputs[0].token_ids for result in results[:half]}) > half // 2
