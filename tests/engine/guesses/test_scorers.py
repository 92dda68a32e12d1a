"""Guesses beside whatever else reads the target's K and V, or ends a step in another way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.loop.runs import using
from rsd_engine import Confidence, Constant, Engine, Probe, SamplingParams, Scorer, Threshold
from rsd_engine.loop.rsd import build_program
from rsd_engine.sampling_params import SpeculateName
from tests.engine.guesses.runs import (
    ask,
    assert_same,
    demo_engine,
    guessing,
    plain_params,
    told,
    with_guesses,
)
from tests.engine.harness.runs import PROMPTS, all_pages_free, generate, harsh
from tests.engine.scorers.test_merged import with_value_head
from tests.engine.scorers.test_own_heads import JUDGE, probe_file
from tests.loop.executors.on_cpu import host_graphs
from tests.tiny_models import TinyModels

SCORERS: dict[str, Callable[[Path], Scorer]] = {
    "judge": lambda folder: JUDGE,
    "confidence": lambda folder: Confidence("logprob"),
    "probe": lambda folder: Probe(probe_file(folder, "target", 1, 1), role="target"),
}


def check_rsd(engine: Engine) -> None:
    """Alike in mode rsd with each source; also while pages are taken away."""
    plain = plain_params(5, mode="rsd", policy=Constant(0.4), max_step_tokens=15, max_tokens=30)
    wanted = ask(engine, plain)
    assert any(s.rejected for r in wanted for s in r.outputs[0].steps)
    assert_same(ask(engine, guessing(plain, "rsd")), wanted)
    with harsh(engine, ticks=4, preempt_every=9):
        assert_same(ask(engine, guessing(plain, "rsd")), wanted)
    assert engine.num_preemptions > 0 and all_pages_free(engine)


@pytest.mark.parametrize(
    "name", ["judge", *(pytest.param(n, marks=pytest.mark.slow) for n in ("confidence", "probe"))]
)
def test_scorers_without_a_model_of_their_own(name: str, tmp_path: Path) -> None:
    """The judge's question follows the step in the target's own pages."""
    with demo_engine(prm=None, scorer=SCORERS[name](tmp_path), max_num_seqs=5) as engine:
        check_rsd(engine)


@pytest.mark.slow
def test_a_prm_that_is_the_targets_decoder(tmp_path: Path) -> None:
    model = with_value_head(tmp_path / "merged")
    with demo_engine(target=model, prm=model, max_num_seqs=5) as engine:
        check_rsd(engine)


def tiny_engine(models: TinyModels, **options: Any) -> Engine:
    return Engine(**models.sources(), device="cpu", max_num_seqs=3, max_guesses=12, **options)


@pytest.mark.parametrize("step_ends", ["text", "tokens"])
def test_step_ends(tiny: TinyModels, step_ends: str) -> None:
    """The tiny models often write past a delimiter, which is cut there or not."""
    plain = [
        SamplingParams(temperature=0.7, seed=s, max_tokens=40, policy=Threshold(0.55))
        for s in range(6)
    ]
    with tiny_engine(tiny, step_ends=step_ends) as engine:
        found = generate(engine, PROMPTS, guessing(plain, "rsd"))
        assert_same(found, generate(engine, PROMPTS, plain))


@pytest.mark.parametrize("text_path", [False, True])
def test_the_target_goes_on_where_the_prm_is_full(
    tiny: TinyModels, other_prm: TinyModels, *, text_path: bool
) -> None:
    params = SamplingParams(
        temperature=0.0, seed=1, max_tokens=150, max_step_tokens=20, ignore_eos=True,
        policy=Threshold(0.5), prm_overflow="target",
    )  # fmt: skip
    overrides = {"prm": {"max_position_embeddings": 100}}
    with tiny_engine(other_prm if text_path else tiny, hf_overrides=overrides) as engine:
        wanted = generate(engine, PROMPTS[:3], params)
        sources = [step.source for step in wanted[1].outputs[0].steps]
        assert "draft" in sources and sources[-3:] == ["target"] * 3
        ways: list[SpeculateName] = ["ngram", "ngram", "rejected+draft"]
        found = generate(engine, PROMPTS[:3], [with_guesses(params, way, 3) for way in ways])
        assert_same(found, wanted)


def test_executors() -> None:
    """Graphs by the host and graphs that loop by themselves, walked in Python."""
    plain = plain_params(4, mode="rsd", max_tokens=16)
    asked = guessing(plain, "rsd")
    with demo_engine(max_num_seqs=3, executor="eager") as engine:
        wanted = ask(engine, plain)
    with demo_engine(max_num_seqs=3, executor="simulated-loop") as engine:
        assert_same(ask(engine, asked), wanted)
        core = engine.parts.core
        with using(core, host_graphs(build_program(core.loop), 8)):
            assert_same(ask(engine, asked), wanted)
    with demo_engine(max_num_seqs=3, executor="profile") as engine:
        assert [told(r) for r in ask(engine, asked)] == [told(r) for r in wanted]
