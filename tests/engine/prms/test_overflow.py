"""What follows when the PRM's context is full: the output stops, or one model goes on unscored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Literal

import pytest

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.outputs import CompletionOutput, Step
from rsd_engine.sampling_params import OverflowName
from rsd_kernels.state.enums import Role
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
from tests.tiny_models import TinyModels, make_tiny_models, third_tokenizer

PRM_CONTEXT = 160
MAX_TOKENS = 180
WRITES_ON: dict[OverflowName, Literal["target", "draft"]] = {"target": "target", "accept": "draft"}
PARAMS = SamplingParams(
    temperature=0.0,
    max_tokens=MAX_TOKENS,
    max_step_tokens=20,
    ignore_eos=True,
    policy=Threshold(0.5),
)


def engine_with(
    models: TinyModels, executor: str = "eager", prm: int = PRM_CONTEXT, step_ends: str = "text"
) -> Engine:
    overrides = {"prm": {"max_position_embeddings": prm}}
    return Engine(
        **models.sources(), hf_overrides=overrides, max_num_seqs=4, device="cpu",
        executor=executor, step_ends=step_ends,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["device", "text"])
def short(
    request: pytest.FixtureRequest, tiny: TinyModels, other_prm: TinyModels
) -> Iterator[Engine]:
    """A PRM of few positions, whose context the device writes, or the host by way of text."""
    models = tiny if request.param == "device" else other_prm
    with engine_with(models, step_ends="tokens") as built:  # contexts are known from the outputs
        yield built


def was_scored(step: Step) -> bool:
    return step.reward is not None or (
        step.rejected is not None and not isnan(step.rejected.reward)
    )


def split(output: CompletionOutput) -> tuple[list[Step], list[Step]]:
    """The steps up to the last one that the PRM had a part in, and the rest."""
    last = max(i for i, step in enumerate(output.steps) if was_scored(step))
    return list(output.steps[: last + 1]), list(output.steps[last + 1 :])


@pytest.mark.parametrize("prm_overflow", WRITES_ON)
@pytest.mark.parametrize("roughly", [False, True], ids=["plain", "preempted"])
def test_one_model_writes_the_rest(
    short: Engine, prm_overflow: OverflowName, roughly: bool
) -> None:
    """The steps that fit are scored as ever; then one writer continues, as it would alone."""
    params = replace(PARAMS, prm_overflow=prm_overflow)
    if roughly:
        with harsh(short, ticks=5):
            results = generate(short, PROMPTS[:4], params)
    else:
        results = generate(short, PROMPTS, params)
    fresh, writer = Fresh(short), WRITES_ON[prm_overflow]
    for result in results:
        [output] = result.outputs
        assert (output.finish_reason, output.stop_reason) == ("length", None)
        before, rest = split(output)
        assert rest and {step.source for step in rest} == {writer}
        kept = [i for step in before for i in step.token_ids]
        alone = replace(PARAMS, mode=writer, max_tokens=MAX_TOKENS - len(kept))
        prompt = [*result.prompt_token_ids, *kept]
        [continued] = short.generate([prompt], alone, use_tqdm=False)
        assert output.token_ids[len(kept) :] == continued.outputs[0].token_ids
        for row, reward in zip(prm_rows(short, result), scores(result), strict=True):
            assert isnan(reward) == (len(row) > PRM_CONTEXT)
            assert isnan(reward) or reward == pytest.approx(fresh.reward(row), abs=1e-5)
        tokens = sum(len(s.token_ids) for s in output.steps if s.reward is not None)
        tokens += sum(len(s.rejected.token_ids) for s in output.steps if s.rejected)
        own = {role: getattr(result.metrics, role) for role in ("draft", "target")}
        assert result.metrics.flops.generated == sum(
            2 * size * count
            for size, count in zip(
                short.parts.models.num_parameters.values(),
                [m.tokens_generated + m.tokens_discarded for m in own.values()] + [tokens],
                strict=True,
            )
        )
    assert all_pages_free(short)


@pytest.mark.parametrize("prm_overflow", WRITES_ON)
@pytest.mark.parametrize("of_target", [False, True], ids=["draft", "target"])
def test_writers_with_vocabularies_of_their_own(
    prm_overflow: OverflowName, of_target: bool, tmp_path: Path
) -> None:
    """Whosever step did not fit, the writer that goes on has the slot at once."""
    models = make_tiny_models(tmp_path, draft_tokenizer=third_tokenizer())
    params = replace(PARAMS, prm_overflow=prm_overflow, policy=Threshold(1.1), max_step_tokens=None)
    short, long = ("a", "\n\n") * 90, ("c" * 60 + "\n\n") * 3
    with engine_with(models, prm=100) as built:
        texts = {Role.DRAFT: "".join(short), Role.TARGET: long}
        if not of_target:
            texts = {Role.DRAFT: long, Role.TARGET: "b\n\n" * 90}
        writers = built.parts.models.writers
        scripts = {
            role: writers[role].tokenizer.encode(text, add_special_tokens=False)
            for role, text in texts.items()
        }
        with (
            scripted(built, scripts[Role.DRAFT]),
            scripted(built, scripts[Role.TARGET], role=Role.TARGET),
        ):
            [result] = generate(built, ["x"], params)
        before, rest = split(result.outputs[0])
        assert {step.source for step in before} == {"target"}
        assert rest and {step.source for step in rest} == {WRITES_ON[prm_overflow]}
        # Nothing is drafted in vain but the step that did not fit.
        in_vain = prm_overflow == "target" and not of_target
        assert [step for step in rest if step.rejected] == rest[:1] * in_vain
        assert len(result.outputs[0].token_ids) == MAX_TOKENS and all_pages_free(built)


def test_the_output_stops_by_default(short: Engine) -> None:
    """It ends a little before its PRM's context might be full, with the step that is begun."""
    for result in generate(short, PROMPTS, PARAMS):
        [output] = result.outputs
        assert (output.finish_reason, output.stop_reason) == ("length", "prm_context")
        assert 20 < len(output.token_ids) < MAX_TOKENS
        assert max(map(len, prm_rows(short, result))) <= PRM_CONTEXT
    [result] = generate(short, PROMPTS[:1], replace(PARAMS, max_tokens=20))
    assert (result.outputs[0].finish_reason, result.outputs[0].stop_reason) == ("length", None)


@pytest.mark.parametrize("prm_overflow", WRITES_ON)
def test_the_simulated_graph_does_the_same(tiny: TinyModels, prm_overflow: OverflowName) -> None:
    params = replace(PARAMS, prm_overflow=prm_overflow)
    with engine_with(tiny, "simulated-loop") as graph, engine_with(tiny) as eager:
        wanted = [decisions(result) for result in generate(eager, PROMPTS, params)]
        assert [decisions(result) for result in generate(graph, PROMPTS, params)] == wanted


def test_pages_are_counted_up_to_the_prms_context(tiny: TinyModels) -> None:
    """A request that goes on without the PRM needs no pages for what it never reads."""
    with engine_with(tiny) as roomy:
        core, size = roomy.parts.core, roomy.parts.pool.page_bytes
        params = replace(PARAMS, max_tokens=400, prm_overflow="target")
        [result] = generate(roomy, ["x"], params)
        assert len(result.outputs[0].token_ids) == 400
        per_page = core.loop.tokens_per_page
        held = [
            -(-length // tokens)
            for length, tokens in zip((402, 402, PRM_CONTEXT), per_page, strict=True)
        ]
    overrides = {"prm": {"max_position_embeddings": PRM_CONTEXT}}
    with Engine(
        **tiny.sources(), hf_overrides=overrides, max_num_seqs=1, device="cpu",
        kv_cache_memory_bytes=sum(held) * size, max_model_len=402,
    ) as tight:  # fmt: skip
        [result] = generate(tight, ["x"], params)
        assert len(result.outputs[0].token_ids) == 400


def test_the_value_is_checked() -> None:
    with pytest.raises(ValueError, match="prm_overflow must be 'stop', 'target' or 'accept', got"):
        SamplingParams(prm_overflow="draft")  # type: ignore[arg-type]
