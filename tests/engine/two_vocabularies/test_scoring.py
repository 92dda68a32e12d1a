"""What scores steps, where draft and target have vocabularies of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isnan
from typing import Literal

import pytest

from rsd_engine import Confidence, Engine, Probe, SamplingParams, TargetJudge, Threshold
from rsd_engine.outputs import RequestOutput
from rsd_engine.sampling_params import OverflowName
from rsd_engine.steps.scorers import Scorer
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, harsh
from tests.engine.two_vocabularies.families import Family

MAX_TOKENS = 100
PARAMS = SamplingParams(
    temperature=0.0, max_tokens=MAX_TOKENS, max_step_tokens=12, ignore_eos=True,
    policy=Threshold(0.5), skip_special_tokens=False,
)  # fmt: skip
WRITES_ON: dict[OverflowName, Literal["target", "draft"]] = {"target": "target", "accept": "draft"}


@pytest.fixture(scope="module")
def short(one_family: Family) -> Iterator[Engine]:
    """A PRM whose context is full before the writers' are."""
    sources, overrides = one_family.folders.sources(), {"prm": {"max_position_embeddings": 110}}
    with Engine(**sources, hf_overrides=overrides, max_num_seqs=4, device="cpu") as engine:
        assert engine.parts.models.separate
        yield engine


@pytest.mark.parametrize("scorer", [TargetJudge(), Confidence(), Probe("w.safetensors")])
def test_scorers_of_the_writers_own_tokens_are_refused(one_family: Family, scorer: Scorer) -> None:
    folders = one_family.folders
    with pytest.raises(ValueError, match="scorer needs a draft and a target of one tokenizer") as e:
        Engine(folders.draft, folders.target, scorer=scorer, device="cpu")
    assert "\n" not in str(e.value) and "give prm in its place" in str(e.value)


def contexts(family: Family, prompt: str, steps: RequestOutput) -> dict[str, list[int]]:
    """What each writer has before it after some steps: its own ids, and those of others' text."""
    found = {w: list(family.two.tokenizer(w).encode(prompt)) for w in ("draft", "target")}
    for step in steps.outputs[0].steps:
        if step.reward is None and (step.rejected is None or isnan(step.rejected.reward)):
            break
        for writer, ids in found.items():
            own = step.source == writer
            tokenizer = family.two.tokenizer(writer)
            ids += step.token_ids if own else tokenizer.encode(step.text, add_special_tokens=False)
    return found


@pytest.mark.parametrize("prm_overflow", WRITES_ON)
@pytest.mark.parametrize("roughly", [False, True], ids=["plain", "preempted"])
def test_one_writer_goes_on_in_its_own_context(
    one_family: Family, short: Engine, prm_overflow: OverflowName, roughly: bool
) -> None:
    params = replace(PARAMS, prm_overflow=prm_overflow)
    results = generate(short, PROMPTS, params)
    if roughly:
        with harsh(short, ticks=5):
            again = generate(short, PROMPTS, params)
        assert list(map(decisions, again)) == list(map(decisions, results))
    writer, continued = WRITES_ON[prm_overflow], 0
    for prompt, result in zip(PROMPTS, results, strict=True):
        [output] = result.outputs
        scored = [
            step.reward is not None
            or (step.rejected is not None and not isnan(step.rejected.reward))
            for step in output.steps
        ]
        last = scored.index(False) if False in scored else len(scored)
        rest = output.steps[last:]
        assert {step.source for step in rest} <= {writer} and not any(scored[last:])
        kept = sum(len(step.token_ids) for step in output.steps[:last])
        context = contexts(one_family, prompt, result)[writer]
        alone = replace(PARAMS, mode=writer, max_tokens=MAX_TOKENS - kept)
        if not rest:
            continue
        [expected] = short.generate([context], alone, use_tqdm=False)
        continued += 1
        ids = [i for step in rest for i in step.token_ids]
        assert ids == list(expected.outputs[0].token_ids)
    assert continued > 2 and all_pages_free(short)
    assert short.check_integrity() == []


def test_the_output_stops_by_default(short: Engine) -> None:
    lengths = []
    for result in generate(short, PROMPTS, PARAMS):
        [output] = result.outputs
        assert (output.finish_reason, output.stop_reason) == ("length", "prm_context")
        lengths.append(len(output.token_ids))
    assert max(lengths) < MAX_TOKENS and sum(length > 20 for length in lengths) > 2
    assert all_pages_free(short)
