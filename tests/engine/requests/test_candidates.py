"""Several drafts of a step: what a request may ask for, and what its result tells of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from rsd_engine import (
    GSI,
    Beam,
    Best,
    Candidate,
    Engine,
    RejectedStep,
    SamplingParams,
    Softmax,
    Step,
    StepEvent,
    Threshold,
)
from rsd_engine.core.events import LostCandidate, RequestDone, RoleCounters, StepDecided
from rsd_engine.core.slots import SlotRequest
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.requests.rules import RequestRules, WriterTokens
from rsd_engine.engine.requests.slots import slot_request
from rsd_engine.engine.results.request import RequestBuilder
from rsd_engine.engine.results.sample import SampleBuilder
from rsd_engine.outputs import CandidateCounts, Metrics, RequestOutput
from rsd_engine.steps.vocabulary import Vocabulary
from rsd_kernels.state.enums import Finish, RecordKind, Role

TEXTS = (b"a", b"b", b"c", b"\n", b"", b"\xc3", b"\xa4")
END = 4
LETTERS = Vocabulary(TEXTS, {END: "</s>"}, frozenset({END}), None, Tokenizer(BPE()))
DRAFT, TARGET, PRM = Role.DRAFT, Role.TARGET, Role.PRM
PARAMETERS = {DRAFT: 1, TARGET: 100, PRM: 10_000}
NAN, INF = math.nan, math.inf


def decided(
    kind: RecordKind, source: Role, reward: float, *ids: int, lost: tuple[LostCandidate, ...] = ()
) -> StepDecided:
    finish = Finish.STOP_TOKEN if ids[-1] == END else Finish.NONE
    return StepDecided(0, kind, source, reward, ids, finish, None, candidates=lost)


def result_of(
    *events: StepDecided, given_up: tuple[LostCandidate, ...] = ()
) -> tuple[RequestOutput, list[StepEvent]]:
    """Of one sample."""
    tokens = WriterTokens(LETTERS, len(TEXTS), frozenset({END}), lambda text: [])
    params = SamplingParams(step_candidates=3)
    sample = SampleBuilder("r", 0, params, {DRAFT: tokens, TARGET: tokens})
    told = [told for event in events if (told := sample.push(event))]
    counters = dict.fromkeys(PARAMETERS, RoleCounters(7, 2, 0.5))
    sample.close(RequestDone(0, events[-1].finish, counters, 0, given_up=given_up))
    builder = RequestBuilder("r", ResolvedPrompt("x", (0,), "x"), 1, [sample])
    return builder.output(PARAMETERS), told


def test_the_best_of_three_is_kept() -> None:
    lost = (
        LostCandidate(DRAFT, (1, 3), 0.25, None),
        LostCandidate(DRAFT, (0, 1, END), -INF, None),  # its step could not be scored
    )
    result, [event] = result_of(decided(RecordKind.KEPT, DRAFT, 0.75, 0, END, lost=lost))
    [output], metrics = result.outputs, result.metrics
    [step] = output.steps
    assert (output.text, step.text, step.reward) == ("a", "a", 0.75)
    one, two = step.candidates
    assert one == Candidate("b\n", (1, 3), "draft", 0.25)
    assert (two.text, two.token_ids, two.score) == ("ab", (0, 1, END), None)
    assert math.isnan(two.reward)
    assert event.candidates == step.candidates
    assert metrics.candidates == CandidateCounts(made=3, taken=1, tokens_discarded=5)
    assert (metrics.draft.tokens_generated, metrics.draft.tokens_discarded) == (2, 5)
    assert (metrics.steps_accepted, metrics.steps_rejected) == (1, 0)
    assert metrics.flops.generated == 2 * (7 * PARAMETERS[DRAFT] + 7 * PARAMETERS[PRM])


def test_texts_of_candidates_go_on_from_the_step_before() -> None:
    """The second half of a character shows as one: the first is what the step before ended with."""
    lost = (LostCandidate(DRAFT, (6,), 0.5, None),)
    result, _ = result_of(
        decided(RecordKind.KEPT, DRAFT, 0.75, 0, 5),
        decided(RecordKind.KEPT, DRAFT, 0.75, 6, END, lost=lost),
    )
    assert result.outputs[0].text == "aä"
    assert result.outputs[0].steps[1].candidates[0].text == "ä"


def test_the_best_is_rejected_and_rewritten_unscored() -> None:
    lost = (LostCandidate(DRAFT, (1, 3), 0.25, None),)
    for first, second in ((lost, ()), ((), lost)):  # whichever event brings them
        result, [rejected, kept] = result_of(
            decided(RecordKind.REJECTED, DRAFT, 0.5, 0, 3, lost=first),
            decided(RecordKind.KEPT, TARGET, NAN, 2, END, lost=second),
        )
        metrics = result.metrics
        loser = Candidate("b\n", (1, 3), "draft", 0.25)
        assert result.outputs[0].steps == (
            Step(
                "c", (2, END), "target", None, RejectedStep("a\n", (0, 3), 0.5), candidates=(loser,)
            ),
        )
        assert (rejected.kind, rejected.candidates) == ("rejected", ())
        assert (kept.kind, kept.candidates) == ("kept", (loser,))
        assert metrics.candidates == CandidateCounts(made=2, taken=1, tokens_discarded=2)
        assert (metrics.draft.tokens_discarded, metrics.target.tokens_discarded) == (4, 0)
        assert (metrics.steps_accepted, metrics.steps_rejected) == (0, 1)
        assert metrics.flops.generated == 2 * (4 * 1 + 2 * 100 + 4 * 10_000)


def test_gsi_keeps_a_candidate_of_the_target() -> None:
    lost = (
        LostCandidate(DRAFT, (1, 3), 0.25, 2.5),
        LostCandidate(DRAFT, (2,), NAN, -INF),
        LostCandidate(TARGET, (0, 1, 3), 0.125, None),
    )
    result, _ = result_of(
        decided(RecordKind.REJECTED, DRAFT, 0.5, 0, 3),
        decided(RecordKind.KEPT, TARGET, 0.75, 2, 3, lost=lost),
        decided(RecordKind.KEPT, DRAFT, 0.75, 0, END, lost=(LostCandidate(DRAFT, (1,), 0.5, 9.5),)),
    )
    first, second = result.outputs[0].steps
    assert (first.source, first.reward, second.source) == ("target", 0.75, "draft")
    assert [(c.source, c.score) for c in first.candidates] == [
        ("draft", 2.5), ("draft", None), ("target", None),
    ]  # fmt: skip
    metrics = result.metrics
    # Three of the draft and two of the target, then two of the draft.
    assert metrics.candidates == CandidateCounts(made=7, taken=3, tokens_discarded=7)
    assert (metrics.draft.tokens_discarded, metrics.target.tokens_discarded) == (6, 3)
    assert (metrics.steps_accepted, metrics.steps_rejected) == (1, 1)  # not the target's own
    read_by_prm = 5 + 5 + 3
    weighed_by_target = 4 + 3  # what had no reward was not weighed
    assert metrics.flops.generated == 2 * (
        (6 + 2) * 1 + (2 + 3 + weighed_by_target) * 100 + read_by_prm * 10_000
    )


def test_beams_that_were_given_up_are_counted() -> None:
    """Nobody lost against the first step, whose reward is the target's; others did later."""
    result, _ = result_of(
        decided(RecordKind.REJECTED, DRAFT, 0.25, 0, 3),
        decided(RecordKind.KEPT, TARGET, 0.75, 2, 3),
        decided(
            RecordKind.KEPT, DRAFT, 0.75, 0, END, lost=(LostCandidate(DRAFT, (1,), 0.5, None),)
        ),
        given_up=(
            LostCandidate(DRAFT, (0, 0, 0), 0.5, None),
            LostCandidate(TARGET, (1, 1, 1, 1, 1), 0.5, None),
        ),
    )
    metrics = result.metrics
    assert metrics.candidates == CandidateCounts(made=5, taken=2, tokens_discarded=9)
    assert (metrics.draft.tokens_discarded, metrics.target.tokens_discarded) == (6, 5)
    assert (metrics.steps_accepted, metrics.steps_rejected) == (1, 1)
    assert metrics.flops.generated == 2 * ((6 + 2) * 1 + (5 + 2) * 100 + (6 + 5 + 4) * 10_000)


def test_candidates_for_a_step_that_failed_are_counted() -> None:
    lost = (LostCandidate(DRAFT, (1, 3), 0.25, None),)
    result, [event] = result_of(
        decided(RecordKind.KEPT, DRAFT, 0.75, 0, 3),
        replace(decided(RecordKind.DROPPED, TARGET, NAN, 0, 1, lost=lost), finish=Finish.ERROR),
    )
    [output] = result.outputs
    assert output.finish_reason == "error"
    assert [step.candidates for step in output.steps] == [()] and event.text == "a\n"
    assert result.metrics.candidates == CandidateCounts(made=3, taken=2, tokens_discarded=2)
    assert result.metrics.draft.tokens_discarded == 2
    assert result.metrics.target.tokens_discarded == 2


def test_results_are_json_and_counts_add_up() -> None:
    lost = (
        LostCandidate(DRAFT, (1,), -INF, -INF),
        LostCandidate(DRAFT, (1,), 0.5, 9.5),
    )
    result, _ = result_of(
        decided(RecordKind.REJECTED, DRAFT, -INF, 0, 3),
        decided(RecordKind.KEPT, TARGET, NAN, 0, END, lost=lost),
    )
    back = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    [step] = back["outputs"][0]["steps"]
    assert step["reward"] is step["rejected"]["reward"] is None
    assert step["candidates"] == [
        {"text": "b", "token_ids": [1], "source": "draft", "reward": None, "score": None},
        {"text": "b", "token_ids": [1], "source": "draft", "reward": 0.5, "score": 9.5},
    ]
    assert back["metrics"]["candidates"] == {"made": 3, "taken": 1, "tokens_discarded": 2}
    twice = result.metrics + result.metrics
    assert twice.candidates == CandidateCounts(6, 2, 4) and twice.candidates.lost == 4
    assert Metrics().candidates == CandidateCounts(0, 0, 0)


# ---------------------------------------------------------------------- what may be asked for


def slot(rules: RequestRules, **asked: Any) -> SlotRequest:
    params = SamplingParams(max_tokens=8, **asked)
    return slot_request(ResolvedPrompt("ab", (5, 6), "ab"), params, rules, seed=1)


@pytest.mark.parametrize(
    ("asked", "slots", "select"),
    [
        ({}, 1, None),
        ({"step_candidates": 3}, 3, Best()),
        ({"step_candidates": 4, "select": Softmax(2.0)}, 4, Softmax(2.0)),
        ({"step_candidates": 2, "select": Beam(2)}, 4, Beam(2)),
        ({"select": Beam(4)}, 4, Beam(4)),
    ],
)
def test_what_a_slot_knows(
    engine: Engine, asked: Mapping[str, Any], slots: int, select: Any
) -> None:
    request = slot(replace(engine.parts.rules, max_num_seqs=4), **asked)
    assert (request.num_slots, request.select) == (slots, select)


@pytest.mark.parametrize(
    ("rules", "asked", "error"),
    [
        ({}, {"mode": "draft"}, "nothing scores steps in mode 'draft'"),
        ({"modes": ("target",)}, {}, "nothing scores steps in mode 'target'"),
        ({"remote": {TARGET, PRM}}, {}, "for that the target and prm must be here"),
        ({"max_num_seqs": 3}, {}, "that takes 4 slots at once, of max_num_seqs=3; lower them or"),
        ({"max_num_seqs": 7}, {"select": Beam(2)}, "that takes 8 slots at once, of max_num_seqs=7"),
    ],
)
def test_engines_that_cannot(
    engine: Engine, rules: dict[str, Any], asked: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=f"^step_candidates is 4, select is .*, and {error}"):
        slot(
            replace(engine.parts.rules, **{"max_num_seqs": 8, **rules}), step_candidates=4, **asked
        )


def test_an_engine_of_two_tokenizers_cannot(engine: Engine) -> None:
    rules = engine.parts.rules
    writers = {DRAFT: rules.writers[DRAFT], TARGET: replace(rules.writers[TARGET])}
    with pytest.raises(ValueError, match="and draft and target have different tokenizers here"):
        slot(replace(rules, writers=writers, max_num_seqs=8), step_candidates=4)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"step_candidates": 65}, r"step_candidates must be in \[1, 64\], got 65"),
        ({"step_candidates": None}, "step_candidates must be an integer"),
        ({"select": Best()}, "select is Best.*, and step_candidates is 1, so there is nothing"),
        ({"select": Beam(1)}, "select is Beam.*, and step_candidates is 1, so there is nothing"),
        ({"step_candidates": 2, "select": "best"}, "select must be one of rsd_engine's selections"),
        (
            {"step_candidates": 2, "select": GSI(), "policy": Threshold(0.5)},
            r"policy is Threshold\(threshold=0\.5\), and select is GSI\(.*leave policy out",
        ),
    ],
)
def test_parameters_that_do_not_go_together(asked: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        SamplingParams(**asked)
