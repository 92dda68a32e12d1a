"""Greedy results do not depend on where the models are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import (
    CompletionOutput,
    Confidence,
    Engine,
    RemoteModel,
    RequestOutput,
    SamplingParams,
    Threshold,
)
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate as make_problems
from rsd_engine.outputs import FinishedEvent, StepEvent
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, harsh
from tests.engine.remote.conftest import POLICY, remote_engine
from tests.engine.remote.fakes import Behind, sglang_app, vllm_app
from tests.engine.remote.serving import listening, own_app
from tests.tiny_models import TinyModels, make_tiny_models, third_tokenizer

FAST = {("stop strings", "both"), ("the target alone", "target")}
# What the models read depends on the tokens at the ends of the steps that they write to these.
QUESTIONS = (PROMPTS[3], PROMPTS[4], "0 + 0 = ?", "2 + 14 = ?")
GREEDY = SamplingParams(temperature=0.0, max_tokens=40)
SETTINGS: dict[str, SamplingParams] = {
    "steps": GREEDY,
    "stop strings": replace(GREEDY, stop=["2", "a("], min_tokens=20),
    "long texts": replace(GREEDY, ignore_eos=True, max_tokens=200, max_step_tokens=9),
    "the target alone": replace(GREEDY, mode="target", min_tokens=30),
    "a context that is full": replace(GREEDY, max_tokens=None, prm_overflow="target"),
    "penalty and bias": replace(GREEDY, repetition_penalty=1.3, logit_bias={40: 3.0, 41: -9.0}),
}


def assert_equal(ours: Sequence[RequestOutput], theirs: Sequence[RequestOutput]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert decisions(one) == decisions(other)
        a, b = one.outputs[0], other.outputs[0]
        assert (a.text, a.token_ids, a.finish_reason, a.stop_reason) == (
            b.text, b.token_ids, b.finish_reason, b.stop_reason,
        )  # fmt: skip
        assert a.error is None
        assert rewards(a) == pytest.approx(rewards(b), abs=1e-5, nan_ok=True)


def rewards(output: CompletionOutput) -> list[float]:
    """Of every step and of the draft's step that it replaces; NaN where there is none."""
    scored = [step.reward for step in output.steps]
    scored += [step.rejected.reward for step in output.steps if step.rejected is not None]
    return [math.nan if reward is None else reward for reward in scored]


@pytest.mark.parametrize(
    ("setting", "roles"),
    [
        pytest.param(setting, roles, marks=() if (setting, roles) in FAST else pytest.mark.slow)
        for setting in SETTINGS
        for roles in ("target", "prm", "both")
    ],
)
def test_our_own_server(
    setting: str, roles: str, models: TinyModels, local: Engine, url: str
) -> None:
    target = url if roles != "prm" else models.target
    prm = url if roles != "target" else models.prm
    params = SETTINGS[setting]
    wanted = generate(local, QUESTIONS, params)
    with remote_engine(models.draft, target, prm) as engine:
        results = generate(engine, QUESTIONS, params)
        assert (engine.memory.weights.keys() & {Role.TARGET, Role.PRM}) == (
            {"prm": {Role.TARGET}, "target": {Role.PRM}, "both": set()}[roles]
        )
    assert_equal(results, wanted)
    assert any(step.source == "target" for result in wanted for step in result.outputs[0].steps)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "setting", ["stop strings", pytest.param("long texts", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("most_ids", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_targets_of_other_servers(
    kind: str, setting: str, most_ids: int, models: TinyModels, local: Engine
) -> None:
    """`most_ids`: a server may stop within a step, and is asked for the rest."""
    behind = Behind(local, most_ids)
    app = vllm_app(behind) if kind == "vllm" else sglang_app(behind)
    wanted = generate(local, PROMPTS[:3], SETTINGS[setting])
    with listening(app) as found, remote_engine(models.draft, f"{found}/v1", models.prm) as engine:
        results = generate(engine, PROMPTS[:3], SETTINGS[setting])
        passes = engine.metrics.target.passes
    assert_equal(results, wanted)
    assert passes == len(behind.bodies) > 0
    assert {step.source for result in wanted for step in result.outputs[0].steps} == {
        "draft", "target",
    }  # fmt: skip


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize("kind", ["vllm pooling", "vllm values", "vllm classify", "sglang"])
def test_prms_of_other_servers(kind: str, models: TinyModels, local: Engine) -> None:
    behind = Behind(local)
    apps = {
        "vllm pooling": lambda: vllm_app(behind, lambda reward: [1 - reward, reward]),
        "vllm values": lambda: vllm_app(behind, lambda reward: [reward]),
        "vllm classify": lambda: vllm_app(behind),
        "sglang": lambda: sglang_app(behind, lambda reward: [logit(reward)]),
    }
    wanted = generate(local, PROMPTS[:2], GREEDY)
    with listening(apps[kind]()) as found:
        prm = RemoteModel(found, tokenizer=models.prm)
        with remote_engine(models.draft, models.target, prm) as engine:
            results = generate(engine, PROMPTS[:2], GREEDY)
            assert engine.metrics.prm.passes == sum(r.metrics.prm.passes for r in results) > 0
    assert_equal(results, wanted)


def test_the_demo_family() -> None:
    draft, target, prm = (checkpoint_dir(role) for role in ("draft", "target", "prm"))
    problems = [problem.question for problem in make_problems(3, "test", 4)]
    params = SamplingParams(temperature=0.0, max_tokens=80)
    with (
        Engine(draft, target, prm, device="cpu", max_num_seqs=8) as here,
        own_app(here) as app,
        listening(app) as found,
    ):
        wanted = generate(here, problems, params)
        policy = here.parts.rules.policy
        with Engine(draft, found, found, policy=policy, device="cpu", max_num_seqs=4) as engine:
            results = generate(engine, problems, params)
    assert_equal(results, wanted)
    assert sum(result.metrics.steps_rejected for result in results) > 0


def test_streams_tell_the_same_steps(models: TinyModels, local: Engine, url: str) -> None:
    params = replace(GREEDY, mode="target")
    [wanted] = generate(local, PROMPTS[:1], params)
    with remote_engine(models.draft, url, models.prm) as engine:
        *steps, last = engine.stream(PROMPTS[0], params)
    assert isinstance(last, FinishedEvent)
    kept = [event for event in steps if isinstance(event, StepEvent)]
    assert [event.token_ids for event in kept] == [s.token_ids for s in wanted.outputs[0].steps]
    assert "".join(event.text for event in kept) == last.output.outputs[0].text


def test_seeds_depend_on_step_and_sample(models: TinyModels, local: Engine) -> None:
    behind = Behind(local)
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=40, n=2)
    with (
        listening(vllm_app(behind)) as found,
        remote_engine(models.draft, found, models.prm) as engine,
    ):
        first = generate(engine, PROMPTS[:2], params)
        seeds = [body["seed"] for body in behind.bodies]
        again = generate(engine, PROMPTS[:2], params)
    assert len(set(seeds)) == len(seeds) > 1
    assert sorted(body["seed"] for body in behind.bodies) == sorted(2 * seeds)
    assert [decisions(result) for result in first] == [decisions(result) for result in again]


def test_other_vocabularies(tmp_path: Path) -> None:
    """Each reads its own tokens; without the target's tokenizer such a target is refused."""
    folders = make_tiny_models(tmp_path, draft_tokenizer=third_tokenizer())
    with (
        Engine(**folders.sources(), policy=POLICY, device="cpu", max_num_seqs=4) as here,
        own_app(here) as app,
        listening(app) as found,
    ):
        wanted = generate(here, PROMPTS[:3], GREEDY)
        target = RemoteModel(found, tokenizer=folders.target)
        with remote_engine(folders.draft, target, folders.prm) as engine:
            results = generate(engine, PROMPTS[:3], GREEDY)
            alone = generate(engine, PROMPTS[:1], replace(GREEDY, mode="target"))
        assert_equal(alone, generate(here, PROMPTS[:1], replace(GREEDY, mode="target")))
        with pytest.raises(ValueError, match=r"target: .* has another tokenizer: .* tokenizer="):
            Engine(folders.draft, found, folders.prm, device="cpu")
    assert_equal(results, wanted)
    assert any(step.source == "target" for result in wanted for step in result.outputs[0].steps)


def test_the_drafts_confidence(models: TinyModels, url: str) -> None:
    options: dict[str, Any] = {"scorer": Confidence(), "policy": Threshold(0.14), "device": "cpu"}
    with Engine(models.draft, models.target, max_num_seqs=4, **options) as here:
        wanted = generate(here, PROMPTS, GREEDY)
    with Engine(models.draft, url, max_num_seqs=4, **options) as engine:
        results = generate(engine, PROMPTS, GREEDY)
    assert_equal(results, wanted)
    assert {step.source for result in wanted for step in result.outputs[0].steps} == {
        "draft", "target",
    }  # fmt: skip


@pytest.mark.parametrize("executor", ["eager", "simulated-loop"])
def test_requests_that_are_preempted(
    executor: str, models: TinyModels, local: Engine, url: str
) -> None:
    """With one tick a launch; or launches that end when a server has answered."""
    params = replace(GREEDY, max_tokens=24)
    wanted = generate(local, QUESTIONS, params)
    with Engine(
        models.draft, url, url, policy=POLICY, device="cpu", max_num_seqs=3, executor=executor
    ) as engine:
        if executor == "eager":
            with harsh(engine):
                results = generate(engine, QUESTIONS, params)
            assert engine.num_preemptions > 0
        else:
            results = generate(engine, QUESTIONS, params)
        assert all_pages_free(engine)
    assert_equal(results, wanted)


def test_few_pages(models: TinyModels, local: Engine, url: str) -> None:
    """Slots that wait for a server keep their pages; one that lacks some waits for them."""
    questions = [*QUESTIONS[1:], "x"]
    params = replace(GREEDY, max_tokens=90, ignore_eos=True, max_step_tokens=6)
    wanted = generate(local, questions, params)
    with Engine(
        models.draft, url, models.prm, policy=POLICY, device="cpu", max_num_seqs=4,
        kv_cache_memory_bytes=170_000, max_model_len=150,
    ) as engine:  # fmt: skip
        results = generate(engine, questions, params)
        assert engine.num_preemptions > 0
        assert all_pages_free(engine)
    assert_equal(results, wanted)


def test_ends_of_steps_that_a_server_has_scored(
    models: TinyModels, local: Engine, url: str
) -> None:
    """With the target as the draft: it ends its steps in tokens that text has not."""
    params = replace(GREEDY, policy=Threshold(0.3))
    with Engine(models.target, models.draft, models.prm, device="cpu", max_num_seqs=4) as here:
        wanted = generate(here, QUESTIONS, params)
    with remote_engine(models.target, models.draft, url) as engine:
        results = generate(engine, QUESTIONS, params)
    assert_equal(results, wanted)
