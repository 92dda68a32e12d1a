"""Methods on the demo's models, against what the engine gives when it is asked directly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rsd_engine import Constant, Engine, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import extract_answer
from rsd_engine.engine.chat.questions import ChatSettings, question_seed
from rsd_engine.evaluate.choosing import AGGREGATES
from rsd_engine.evaluate.methods import Decoding, make_trials
from rsd_engine.evaluate.questions import load_questions
from rsd_engine.evaluate.record import TIMES, Counts, Question, Record
from rsd_engine.evaluate.run import BATCH, Examiner, by_method, make_batches

QUESTIONS = load_questions("demo:3")
LIMIT = 80
SEVERAL = SamplingParams(temperature=1.0, max_tokens=LIMIT)
DECODING = Decoding(SamplingParams(temperature=0.0, max_tokens=LIMIT), SEVERAL)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    models = (checkpoint_dir(role) for role in ("draft", "target", "prm"))
    with Engine(*models, max_num_seqs=8, max_guesses=16) as engine:
        yield engine


@pytest.fixture(scope="module")
def examiner(engine: Engine) -> Examiner:
    return Examiner(engine, ChatSettings(), QUESTIONS)


def answers(
    examiner: Examiner, method: str, questions: Sequence[Question] = QUESTIONS, seed: int = 3
) -> list[Record]:
    [batch] = make_batches(make_trials([method], [0.7], DECODING), [seed], questions)
    noticed: list[Record] = []
    found = examiner.answer(batch, lambda record, metrics: noticed.append(record))
    assert sorted(r.question.id for r in noticed) == sorted(q.id for q in questions)
    assert [record.question for record in found] == list(questions)
    assert all(record.seconds == found[0].seconds > 0 for record in found)
    check_times_by_role(found)
    return found


def check_times_by_role(records: list[Record]) -> None:
    """Passes are shared, so that those of a batch take no longer than the batch."""
    told = [record.role_seconds for record in records if record.role_seconds]
    assert len(told) == len(records)
    all_roles = sum(one.draft + one.target + one.prm for one in told)
    assert 0 < all_roles < sum(record.seconds for record in records)


def seeded(params: SamplingParams, question: Question, seed: int = 3) -> SamplingParams:
    return replace(params, seed=question_seed(seed, question.id))


def asked(engine: Engine, params: SamplingParams, question: Question) -> list[str]:
    chat = [{"role": "user", "content": question.text}]
    [result] = engine.chat(chat, seeded(params, question), use_tqdm=False)
    return [output.text for output in result.outputs]


def test_target_and_speculation_write_the_same(engine: Engine, examiner: Examiner) -> None:
    target, guessed = answers(examiner, "target"), answers(examiner, "speculative")
    greedy = replace(DECODING.single, mode="target")
    assert [[record.text] for record in target] == [asked(engine, greedy, q) for q in QUESTIONS]
    assert [record.text for record in guessed] == [record.text for record in target]
    for record in target:
        value = extract_answer(record.text)
        assert record.found == (None if value is None else str(value))
        assert record.correct == (record.found == record.question.answer)
        assert record.counts.target_tokens and not record.counts.draft_tokens
        assert record.role_seconds is not None and record.role_seconds.target
        assert record.role_seconds.draft == record.role_seconds.prm == 0
        assert record.samples == () and record.error is None
        assert "".join(step.text for step in record.steps) == record.text


def test_rsd_keeps_what_reaches_the_threshold(examiner: Examiner) -> None:
    found = answers(examiner, "rsd")
    assert sum(record.counts.steps_rejected for record in found)
    for record in found:
        assert record.settings == {"threshold": 0.7}
        for step in record.steps:
            assert (step.source == "target") == (step.rejected is not None)
            if step.rejected is not None and step.rejected.reward is not None:
                assert step.rejected.reward < 0.7
            if step.source == "draft":
                assert step.reward is not None and step.reward >= 0.7


def test_majority_takes_the_answer_with_most_votes(engine: Engine, examiner: Examiner) -> None:
    draft = replace(SEVERAL, mode="draft", n=5)
    for record in answers(examiner, "majority@5"):
        texts = asked(engine, draft, record.question)
        assert [sample.text for sample in record.samples] == texts
        found = [extract_answer(text) for text in texts]
        votes = Counter(answer for answer in found if answer is not None)
        top = votes.most_common(1)[0][0] if votes else None
        assert record.text == texts[found.index(top)]
        assert record.found == (None if top is None else str(top))
        assert all(sample.reward is None for sample in record.samples)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_best_of_n_takes_the_answer_that_the_prm_likes_best(
    engine: Engine, examiner: Examiner, aggregate: str
) -> None:
    kept = replace(SEVERAL, mode="rsd", policy=Constant(1.0), n=3)
    for record in answers(examiner, f"best@3:{aggregate}", QUESTIONS[:2]):
        texts = asked(engine, kept, record.question)
        scored = engine.score([record.question.text] * 3, texts)
        rewards = [AGGREGATES[aggregate](solution.rewards) for solution in scored]
        assert record.text == texts[rewards.index(max(rewards))]
        told = [sample.reward for sample in record.samples]
        assert told == pytest.approx(rewards, rel=1e-3)
        assert {step.source for step in record.steps} == {"draft"}


def test_process_best_of_n_takes_the_best_step_each_time(examiner: Examiner) -> None:
    for record in answers(examiner, "process@3", QUESTIONS[:2]):
        assert not record.counts.target_tokens
        for step in record.steps:
            assert len(step.candidates) == 2
            rewards = [candidate.reward for candidate in step.candidates]
            assert step.reward is not None
            assert all(reward is not None and step.reward >= reward for reward in rewards)


@pytest.mark.parametrize("method", ["beam@2:2", "gsi@2", "rsd+guesses", "rsd:clip"])
def test_a_batch_that_is_asked_again_gives_the_same(examiner: Examiner, method: str) -> None:
    def lasting() -> list[dict[str, Any]]:
        values = [record.to_json() for record in answers(examiner, method, QUESTIONS[:2])]
        return [{k: v for k, v in one.items() if k not in TIMES} for one in values]

    first = lasting()
    answers(examiner, "draft", QUESTIONS[:1])  # other work in between, and another prefix cache
    assert lasting() == first


def test_a_question_that_cannot_be_asked_is_an_error_of_its_own(examiner: Examiner) -> None:
    long = replace(QUESTIONS[0], id="long", text="How many? " * 3000)
    first, failed, last = answers(examiner, "draft", [QUESTIONS[0], long, QUESTIONS[1]])
    assert failed.error is not None and "tokens" in failed.error
    assert (failed.finish_reason, failed.correct, failed.counts) == ("error", False, Counts())
    alone = answers(examiner, "draft", QUESTIONS[:2])
    assert [first.text, last.text] == [record.text for record in alone]


def test_methods_that_the_engine_cannot_do_are_refused_before_any_work(examiner: Examiner) -> None:
    fine = make_trials(["target", "rsd", "gsi@2"], [0.7], DECODING)
    examiner.check(fine)
    too_many = make_trials(["target", "beam@4:4"], [0.7], DECODING)
    with pytest.raises(ValueError, match=r"method 'beam@4:4': .*16 slots at once, of max_num_seqs"):
        examiner.check(too_many)


def test_batches() -> None:
    questions = [Question(str(i), "?", "1", "mine") for i in range(BATCH + 1)]
    batches = make_batches(make_trials(["target", "rsd"], [0.7], DECODING), [0, 1], questions)
    assert [len(batch) for batch in batches] == [BATCH, 1] * 4
    items = [item for batch in batches for item in batch]
    assert [item.number for item in items] == list(range(1, 4 * len(questions) + 1))
    assert len({item.digest for item in items}) == len(items)
    grouped = [(trial.method, seed, len(group)) for trial, seed, group in by_method(batches)]
    assert grouped == [("target", 0, 2), ("target", 1, 2), ("rsd", 0, 2), ("rsd", 1, 2)]
