"""The ends of kept steps as text has them: what code answers that passes text between models."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest

from bench.compare.paper.agreement import REWARD_ERROR, as_kept_step
from bench.compare.paper.arrangement import Answer, Limits, PaperArrangement
from bench.compare.paper.replay import Replay, TextWriter
from bench.compare.paper.writers import Loaded
from bench.compare.text_path import DIFFERENT, SAME, verdict
from rsd_engine import Engine, RequestOutput, SamplingParams, Threshold
from rsd_engine.engine import make_loop
from rsd_kernels.state.enums import Phase
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, harsh
from tests.tiny_models import TinyModels, make_tiny_models

QUESTIONS = [*PROMPTS, *(f"{n} + {n * 7} = ?" for n in range(8))]
TOKENS = 56  # compared; a few more are written
PARAMS = SamplingParams(temperature=0.0, max_tokens=TOKENS + 16, policy=Threshold(0.5))


@pytest.fixture(scope="module")
def newline_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Models that like newlines: some of their steps are empty, some end in two tokens."""
    return make_tiny_models(tmp_path_factory.mktemp("newlines"), seed=41)


@pytest.fixture(scope="module")
def arrangement(newline_models: TinyModels) -> PaperArrangement:
    return PaperArrangement(
        newline_models.draft,
        newline_models.target,
        newline_models.prm,
        threshold=0.5,
        limits=Limits(TOKENS + 16),
    )


@pytest.fixture(scope="module")
def theirs(arrangement: PaperArrangement) -> list[Answer]:
    return arrangement.solve(QUESTIONS)


def answers(engine: Engine) -> list[RequestOutput]:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return engine.chat(chats, PARAMS, use_tqdm=False)


def same(ours: RequestOutput, theirs: Answer) -> bool:
    """Whether the first tokens of two answers are the same, step by step."""
    [output] = ours.outputs
    ends = accumulate(len(step.token_ids) for step in output.steps)
    for number, (step, end) in enumerate(zip(output.steps, ends, strict=True)):
        if end > TOKENS or not step.text.endswith("\n\n"):
            begun = "".join(one.text for one in output.steps[:number])
            return theirs.written.startswith(
                begun + step.text[: max(0, TOKENS - end + len(step.token_ids))]
            )
        if number >= len(theirs.steps):
            return False
        mine, other = as_kept_step(step), theirs.steps[number]
        texts = (mine.text, mine.source, mine.drafted)
        if texts != (other.text, other.source, other.drafted):
            return False
        assert mine.reward == pytest.approx(other.reward, abs=REWARD_ERROR)
    return True


@pytest.mark.parametrize("executor", ["eager", "simulated-loop"])
@pytest.mark.parametrize("way", ["device", "host"])
def test_the_answers_of_text_between_models(
    way: str,
    executor: str,
    newline_models: TinyModels,
    theirs: list[Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "host":
        monkeypatch.setattr(make_loop, "settles_ends", lambda *_: False)
    with Engine(
        **newline_models.sources(),
        step_ends="text",
        max_num_seqs=5,
        device="cpu",
        executor=executor,
    ) as engine:
        ends = engine.parts.core.loop.ends
        assert ends and (ends.merges is None) == (way == "host")
        plain = answers(engine)
        assert all(map(same, plain, theirs))
        if executor == "eager":
            with harsh(engine):  # preempted, with NaN where nothing may be read
                again = answers(engine)
            assert list(map(decisions, again)) == list(map(decisions, plain))
        assert all_pages_free(engine)
    steps = [step for one in plain for step in one.outputs[0].steps]
    assert any(step.rejected for step in steps) and any(step.source == "draft" for step in steps)
    assert any(step.text == "\n\n" for step in steps)


def test_tokens_as_written_give_other_answers(
    newline_models: TinyModels, theirs: list[Answer], arrangement: PaperArrangement
) -> None:
    """So the comparison can fail; and a replay sees where, without writing the answers again."""
    draft, target = (
        TextWriter(Loaded.of(path)) for path in (newline_models.draft, newline_models.target)
    )
    replay = Replay(draft, target, arrangement.prm, threshold=0.5)
    with Engine(
        **newline_models.sources(), step_ends="tokens", max_num_seqs=5, device="cpu"
    ) as engine:
        ours = answers(engine)
    different = [not same(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    assert 2 < sum(different) < len(QUESTIONS)
    for question, mine, wrong in zip(QUESTIONS, ours, different, strict=True):
        kind, _ = verdict(replay, question, mine)
        assert kind in (SAME, DIFFERENT) and (kind == DIFFERENT) >= wrong


def test_outputs_have_the_tokens_that_were_written(newline_models: TinyModels) -> None:
    """With as many as were asked for, though the context got shorter meanwhile."""
    params = SamplingParams(
        temperature=0.0, max_tokens=40, ignore_eos=True, policy=Threshold(0.5), logprobs=0
    )
    with Engine(**newline_models.sources(), max_num_seqs=6, device="cpu") as engine:
        token_bytes = engine.parts.models.main.vocabulary.token_bytes
        for result in generate(engine, PROMPTS, params):
            [output] = result.outputs
            assert output.finish_reason == "length" and len(output.token_ids) == 40
            assert output.logprobs is not None and len(output.logprobs) == 40
            text = b"".join(token_bytes[i] for i in output.token_ids)
            assert text.decode(errors="replace") == output.text
        assert int(engine.parts.core.state.shortened.sum()) > 0


def test_a_prm_with_another_tokenizer(tmp_path: Path) -> None:
    """Both wait for the host in turn: the step to be scored, and its end once it is kept."""
    models = make_tiny_models(tmp_path, seed=41, own_prm_tokenizer=True)
    with Engine(**models.sources(), max_num_seqs=4, device="cpu") as engine:
        assert engine.parts.core.loop.merges is None
        ends = engine.parts.core.loop.ends
        assert ends and ends.merges is not None
        with harsh(engine):
            found = generate(engine, PROMPTS, PARAMS)
        kept = [d for result in found for d in decisions(result)]
        assert len(kept) > 20
        assert int(engine.parts.core.state.shortened.sum()) > 0
        assert Phase.WAIT_HOST not in engine.parts.core.state.phase.tolist()
        assert all_pages_free(engine)


def test_plain_engines_do_not_look(newline_models: TinyModels) -> None:
    with Engine(target=newline_models.target, step_delimiters="\n\n", device="cpu") as engine:
        assert engine.parts.core.loop.ends is None
    with pytest.raises(ValueError, match=r"step_ends is 'both'; it must be 'text' or 'tokens'"):
        Engine(target=newline_models.target, step_ends="both", device="cpu")
