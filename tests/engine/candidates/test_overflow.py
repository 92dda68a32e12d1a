"""Candidates and beams when the PRM's context is full: what follows is written once, unscored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rsd_engine import GSI, Beam, Best, Engine, SamplingParams, Selection, Threshold
from rsd_engine.sampling_params import OverflowName
from tests.engine.harness.runs import PROMPTS, all_pages_free, generate
from tests.tiny_models import TinyModels


@pytest.fixture(scope="module")
def short(tiny: TinyModels) -> Iterator[Engine]:
    """A PRM of few positions."""
    overrides = {"prm": {"max_position_embeddings": 160}}
    with Engine(**tiny.sources(), hf_overrides=overrides, max_num_seqs=8, device="cpu") as engine:
        yield engine


@pytest.mark.timeout(60)
@pytest.mark.parametrize("overflow", ["stop", "target", "accept"])
@pytest.mark.parametrize("select", [Best(), GSI(5.0, -2.0), Beam(2)], ids=lambda s: s.text)
def test_every_request_ends(short: Engine, select: Selection, overflow: OverflowName) -> None:
    """A beam whose step is decided waits for one that writes on, and lets it."""
    params = SamplingParams(
        temperature=1.0, seed=2, max_tokens=180, max_step_tokens=20, ignore_eos=True,
        policy=None if isinstance(select, GSI) else Threshold(0.5), prm_overflow=overflow,
        step_candidates=2, select=select,
    )  # fmt: skip
    unscored = 0
    for result in generate(short, PROMPTS, params):
        [output] = result.outputs
        assert output.finish_reason == "length"
        assert (output.stop_reason == "prm_context") == (overflow == "stop")
        assert output.text == "".join(step.text for step in output.steps)
        last = output.steps[-1]
        if overflow == "stop" or last.candidates:
            continue
        unscored += 1
        assert last.reward is None
        assert last.source == ("target" if overflow == "target" else "draft")
    assert bool(unscored) == (overflow != "stop")
    assert all_pages_free(short) and short.check_integrity() == []
