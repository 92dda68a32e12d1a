"""The paper's arrangement gives this engine's answers on the demo family, and the gate sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.compare.paper.agreement import require_same_answers
from bench.compare.paper.arrangement import CALL_KINDS, Answer, CallKind, KeptStep, PaperArrangement
from bench.lib.timing import Mismatch
from rsd_engine import CompletionOutput, Engine, SamplingParams, Threshold
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate
from rsd_engine.outputs import StepSource

FOLDERS = (checkpoint_dir("draft"), checkpoint_dir("target"), checkpoint_dir("prm"))
# The target writes two steps of each.
QUESTIONS = [problem.question for problem in generate(8, "test", 2)]


@pytest.fixture(scope="module")
def ours() -> list[CompletionOutput]:
    params = SamplingParams(temperature=0.0, max_tokens=256)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    with Engine(*FOLDERS, policy=Threshold(0.7), dtype="float32", device="cpu") as engine:
        return [result.outputs[0] for result in engine.chat(chats, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def arrangement() -> PaperArrangement:
    return PaperArrangement(*FOLDERS)


@pytest.fixture
def theirs(arrangement: PaperArrangement) -> list[Answer]:
    return arrangement.solve(QUESTIONS)


def test_problems_have_both_kinds_of_steps(ours: Sequence[CompletionOutput]) -> None:
    sources = {step.source for completion in ours for step in completion.steps}
    assert sources == {"draft", "target"}


@pytest.mark.parametrize("calls", CALL_KINDS)
def test_same_answers(ours: list[CompletionOutput], calls: CallKind) -> None:
    arrangement = PaperArrangement(*FOLDERS, calls=calls)
    found = require_same_answers(ours, arrangement.solve(QUESTIONS), arrangement)
    assert (found.answers, found.ties) == (len(QUESTIONS), 0)
    assert require_same_answers(ours[:1], arrangement.solve(QUESTIONS[:1]), arrangement).ties == 0


def test_prefix_cache_reads_less(arrangement: PaperArrangement, theirs: list[Answer]) -> None:
    again = PaperArrangement(*FOLDERS, calls="read again")
    assert again.solve(QUESTIONS) == theirs
    assert arrangement.draft.tokens_read < again.draft.tokens_read
    assert arrangement.target.tokens_read < again.target.tokens_read
    assert arrangement.prm.tokens_read == again.prm.tokens_read


def test_prm_reads_all_again(arrangement: PaperArrangement, theirs: list[Answer]) -> None:
    """Every score reads the question and every step so far."""
    prm = arrangement.prm
    count = 0
    for answer in theirs:
        texts = [step.text for step in answer.steps]
        for at, step in enumerate(answer.steps):
            count += len(prm.ids(answer.question, [*texts[:at], step.drafted]))
    assert prm.tokens_read == count


def spoil(answers: list[Answer], step: KeptStep) -> None:
    answers[1].steps[0] = step


def test_gate_catches_a_wrong_baseline(
    ours: list[CompletionOutput], theirs: list[Answer], arrangement: PaperArrangement
) -> None:
    first = theirs[1].steps[0]
    other: StepSource = "target" if first.source == "draft" else "draft"
    wrong = {
        "drafted": replace(first, drafted=first.drafted + "!"),
        "text": replace(first, text="The answer is 7."),
        "source": replace(first, source=other),
        "reward": replace(first, reward=first.reward + 0.01),
    }
    for step in wrong.values():
        spoil(theirs, step)
        with pytest.raises(Mismatch, match="answer 1 differs at step 0"):
            require_same_answers(ours, theirs, arrangement)
    spoil(theirs, first)
    theirs[0].steps.pop()
    with pytest.raises(Mismatch, match="answer 0 differs at step"):
        require_same_answers(ours, theirs, arrangement)
    with pytest.raises(Mismatch, match="2 answers of ours, 1 of theirs"):
        require_same_answers(ours, theirs[:1], arrangement)


def test_gate_catches_another_threshold(ours: list[CompletionOutput]) -> None:
    arrangement = PaperArrangement(*FOLDERS, threshold=1.1)  # rejects every step
    with pytest.raises(Mismatch):
        require_same_answers(ours, arrangement.solve(QUESTIONS), arrangement)


def test_gate_counts_ties(
    ours: list[CompletionOutput], theirs: list[Answer], arrangement: PaperArrangement
) -> None:
    """A decision may differ where the reward is the threshold within rounding."""
    first = theirs[1].steps[0]
    other: StepSource = "target" if first.source == "draft" else "draft"
    spoil(theirs, replace(first, source=other, reward=first.reward + 1e-5))
    arrangement.threshold, before = first.reward, arrangement.threshold
    try:
        assert require_same_answers(ours, theirs, arrangement).ties == 1
    finally:
        arrangement.threshold = before
