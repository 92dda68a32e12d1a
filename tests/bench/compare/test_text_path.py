"""The comparison with the text path: what it asks, what it finds, what it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bench.compare import text_path
from bench.compare.paper.replay import Departure, Replay, TextWriter
from bench.compare.paper.reward_model import EagerPrm
from bench.compare.paper.stand_in_prm import write_stand_in_prm
from bench.compare.paper.writers import Loaded
from rsd_engine import Engine, RequestOutput, SamplingParams, Step, Threshold
from rsd_engine.demo import checkpoint_dir

QUESTION = "Nora buys 7 shirts that cost $8 each. Nora had $74 at first. How many dollars are left?"


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert text_path.main(["--family", "2", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["passed"]
    for ends in text_path.ENDS:
        one = found["sets"]["demo family"][ends]
        assert one["verdicts"] == {"same": 2, "tie": 0, "other tokens inside": 0, "different": 0}
        assert one["right"] in (1, 2) and one["draft_tokens_read"] > 100
        assert one["steps"]["steps with a delimiter"] > 2


def test_sets_of_questions(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"problem": "a"}\n{"question": "b"}\n{"answer": 1}\n')
    found = text_path.read_sets([str(file)], 2, 3, seed=0)
    assert found["some"] == ["a", "b"] and len(found["demo problems"]) == 3
    with pytest.raises(ValueError, match=r"some.jsonl:3 has neither question nor problem"):
        text_path.read_sets([str(file)], 3, 0, seed=0)


@pytest.fixture(scope="module")
def prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir("target"))
    return write_stand_in_prm(tmp_path_factory.mktemp("prm"), tokenizer)


@pytest.fixture(scope="module")
def answer(prm: Path) -> RequestOutput:
    params = SamplingParams(temperature=0.0, max_tokens=90, policy=Threshold(0.5))
    with Engine(
        checkpoint_dir("target"), checkpoint_dir("target"), prm, dtype="float32", device="cpu"
    ) as engine:
        [result] = engine.chat([{"role": "user", "content": QUESTION}], params, use_tqdm=False)
    return result


@pytest.fixture(scope="module")
def replay(prm: Path) -> Replay:
    writer = TextWriter(Loaded.of(checkpoint_dir("target")))
    return Replay(writer, writer, EagerPrm(prm, "\n\n"), 0.5)


def test_a_stand_in_decides_both_ways(answer: RequestOutput, replay: Replay) -> None:
    steps = answer.outputs[0].steps
    assert len(steps) > 2
    rewards = [(step.rejected or step).reward for step in steps]
    assert len(set(rewards)) == len(steps)
    assert text_path.verdict(replay, QUESTION, answer) == ("same", "")


def test_departures_are_found(answer: RequestOutput, replay: Replay) -> None:
    [output] = answer.outputs
    prompt = replay.draft.tokenizer.decode(answer.prompt_token_ids)
    first, second, *rest = output.steps

    def departure(*steps: Step) -> Departure | None:
        return replay.departure(prompt, QUESTION, replace(output, steps=steps))

    tokens = second.token_ids
    other = replace(second, token_ids=(*tokens[:3], tokens[3] + 1, *tokens[4:]))
    found = departure(first, other, *rest)
    assert found is not None and found.step == 1 and found.gap > 0 and "in place of" in found.what
    reward = replace(first, reward=0.9) if first.rejected is None else None
    if reward is not None:
        found = departure(reward, second, *rest)
        assert found is not None and found.step == 0 and "reward" in found.what
    scored = (first.rejected or first).reward
    assert scored is not None
    stricter = replace(replay, threshold=scored + (0.1 if first.rejected is None else -0.1))
    found = stricter.departure(prompt, QUESTION, output)
    assert found is not None and found.step == 0 and found.gap == pytest.approx(0.1, abs=1e-3)


def test_tokens_inside_a_step(answer: RequestOutput, replay: Replay) -> None:
    """A word in two tokens is told; the delimiter in two is not."""
    prompt = replay.draft.tokenizer.decode(answer.prompt_token_ids)
    [step, *_] = answer.outputs[0].steps
    assert text_path.tokens_inside([step], prompt, replay.draft) == ""
    tokenizer = replay.draft.tokenizer
    letters = [tokenizer.convert_tokens_to_ids(c) for c in "Nora"]
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    assert None not in letters and len(tokenizer.encode("Nora", add_special_tokens=False)) == 1
    spelled = replace(step, token_ids=(*letters, newline, newline), text="Nora\n\n")
    assert text_path.tokens_inside([spelled], prompt, replay.draft) == "'Nora'"
    word = tokenizer.encode("Nora", add_special_tokens=False)
    split = replace(spelled, token_ids=(*word, newline, newline))
    assert text_path.tokens_inside([split], prompt, replay.draft) == ""
