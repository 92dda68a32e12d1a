"""The draft's confidence: what its own distributions over whole texts say of each step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rsd_engine import Confidence, Constant, Engine, SamplingParams, Threshold
from rsd_engine.demo import checkpoint_dir
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import all_pages_free, decisions, harsh
from tests.engine.scorers.oracle import PARAMS, Scored, logits, scored_steps, solve
from tests.tiny_models import make_tiny_models, other_tokenizer

SAMPLED = replace(PARAMS, temperature=0.8, top_p=0.9, repetition_penalty=1.1)


def opened(measure: str, executor: str = "auto", **options: object) -> Engine:
    return Engine(
        checkpoint_dir("draft"), checkpoint_dir("target"), scorer=Confidence(measure),
        policy=Constant(0.5), device="cpu", dtype="float32", max_model_len=400, max_num_seqs=4,
        executor=executor,
    )  # fmt: skip


def expected(scored: Scored, measure: str) -> float:
    row = [*scored.before, *scored.step]
    logprobs = logits("draft", row)[len(scored.before) - 1 : -1].log_softmax(-1)
    if measure == "entropy":
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return float((1 - entropy / math.log(logprobs.shape[-1])).mean())
    return float(logprobs[torch.arange(len(scored.step)), scored.step].mean().exp())


@pytest.mark.parametrize("measure", ["logprob", "entropy"])
@pytest.mark.parametrize("params", [PARAMS, SAMPLED])
def test_scores_are_those_of_a_plain_forward(measure: str, params: SamplingParams) -> None:
    with opened(measure) as engine:
        results = solve(engine, params)
        assert all_pages_free(engine)
        state = engine.parts.core.state
        assert state.prm_tokens.shape[1] == 1
    kept = []
    for result in results:
        for scored in scored_steps(result):
            assert scored.reward == pytest.approx(expected(scored, measure), abs=1e-4)
            kept.append(scored.kept)
        assert result.metrics.prm.tokens_read == result.metrics.prm.passes == 0
        assert result.metrics.flops.all > 0
    assert 4 < sum(kept) < len(kept) - 4


@pytest.mark.parametrize("measure", ["logprob", pytest.param("entropy", marks=pytest.mark.slow)])
def test_executors_and_short_memory_change_nothing(measure: str) -> None:
    with opened(measure) as engine:
        calm = [decisions(r) for r in solve(engine, SAMPLED, 3)]
        with harsh(engine, preempt_every=7):
            assert [decisions(r) for r in solve(engine, SAMPLED, 3)] == calm
        assert engine.num_preemptions > 3
    with opened(measure, "simulated-loop") as engine:
        assert [decisions(r) for r in solve(engine, SAMPLED, 3)] == calm


def test_a_step_whose_score_is_no_number_is_never_kept() -> None:
    with opened("logprob") as engine:
        core = engine.parts.core
        forward = core.loop.forwards[Role.DRAFT]
        state = core.state

        def forgets(batch: object) -> None:
            state.confidence.fill_(math.nan)  # of the tokens so far
            forward(batch)  # type: ignore[arg-type]

        core.loop.forwards[Role.DRAFT] = forgets
        params = replace(PARAMS, policy=Constant(1.0))
        for result in solve(engine, params):
            long = [s for s in scored_steps(result) if len(s.step) > 1]
            assert long and not any(scored.kept for scored in long)
            assert result.metrics.nan_rewards == len(long)


def test_draft_and_target_must_have_one_tokenizer(tmp_path: Path) -> None:
    """What scores the draft's tokens, or reads the target's, could not tell whose they are."""
    folders = make_tiny_models(tmp_path, draft_tokenizer=other_tokenizer())
    with pytest.raises(ValueError, match=r"scorer needs a draft and a target of one tokenizer"):
        Engine(folders.draft, folders.target, scorer=Confidence(), device="cpu")


def test_the_default_threshold_and_what_is_allowed() -> None:
    engine = Engine(
        checkpoint_dir("draft"), checkpoint_dir("target"), scorer=Confidence(), device="cpu"
    )
    with engine:
        assert engine.parts.rules.policy == Threshold(0.8)
        assert engine.parts.models.modes == ("rsd", "target", "draft")
    with pytest.raises(ValueError, match="must be 'logprob' or 'entropy', got 'margin'"):
        Confidence("margin")
