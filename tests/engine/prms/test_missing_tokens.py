"""Tokens that the writers have and the PRM lacks: it reads their letters, by way of the host."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from tokenizers import AddedToken

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import Fresh, all_pages_free, generate, prm_rows, scores
from tests.engine.harness.scripted import scripted
from tests.tiny_models import CONTEXT, TinyModels, tiny_tokenizer, write_tokenizer

DRAFT = "<think>\nI add.\n\n2<think>3\n\nSo</think>\n\nx<think>\n\n5</s>"
TARGET = "it is \n\n<think></think>.\n\n\n\nWell.</think>\n\nfive</s>"
PARAMS = SamplingParams(temperature=0.0, max_tokens=90)


@pytest.fixture(scope="module")
def thinking(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Writers with two thinking tags, which are part of the text; they take padded rows."""
    folder = tmp_path_factory.mktemp("thinking")
    tokenizer = tiny_tokenizer()
    for tag in ("<think>", "</think>"):
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False)])

    def with_tags(source: Path) -> Path:
        copied = copytree(source, folder / source.name)
        write_tokenizer(copied, tokenizer, CONTEXT)
        return copied

    return TinyModels(with_tags(tiny.draft), with_tags(tiny.target), tiny.prm)


@pytest.fixture(scope="module", params=["eager", "simulated-loop"])
def engine(request: pytest.FixtureRequest, thinking: TinyModels) -> Iterator[Engine]:
    with Engine(
        **thinking.sources(), device="cpu", max_num_seqs=2, executor=request.param
    ) as built:
        assert built.parts.core.loop.merges is not None
        yield built


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.1])
def test_rewards_are_those_of_the_text(engine: Engine, threshold: float) -> None:
    """Letters of a tag may join what stands beside them, as `>` and a newline do."""
    params = replace(PARAMS, policy=Threshold(threshold))
    with scripted(engine, DRAFT), scripted(engine, TARGET, role=Role.TARGET):
        results = generate(engine, ["x", "What is 2 + 3?", "a"], params)
    fresh, compared = Fresh(engine), 0
    for result in results:
        for row, reward in zip(prm_rows(engine, result), scores(result), strict=True):
            assert reward == pytest.approx(fresh.reward(row), abs=1e-5)
            compared += 1
    assert compared >= 12
    assert all_pages_free(engine)


def test_a_tag_that_ends_the_output_is_not_read(engine: Engine) -> None:
    """As any stop token: the PRM reads the step without it."""
    stop = engine.get_tokenizer().convert_tokens_to_ids("</think>")
    params = replace(PARAMS, stop_token_ids=[stop], policy=Threshold(0.0))
    with scripted(engine, "ab</think>c</s>"):
        [result] = generate(engine, ["x"], params)
    assert result.outputs[0].stop_reason == stop
    [row] = prm_rows(engine, result)
    assert result.outputs[0].text == "ab"
    assert scores(result) == pytest.approx([Fresh(engine).reward(row)], abs=1e-5)


def test_letters_that_do_not_fit_end_the_output(thinking: TinyModels) -> None:
    """A tag is one token of the writers and seven or eight of the PRM."""
    overrides = {"prm": {"max_position_embeddings": 50}}
    params = replace(PARAMS, policy=Threshold(0.0))
    script = "ab\n\n" + "<think>" * 9 + "</s>"
    with (
        Engine(**thinking.sources(), device="cpu", hf_overrides=overrides) as short,
        scripted(short, script),
    ):
        [stopped] = generate(short, ["x"], params)
        [accepted] = generate(short, ["x"], replace(params, prm_overflow="accept"))
    output = stopped.outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("length", "prm_context")
    assert output.text == "ab\n\n" and stopped.metrics.draft.tokens_discarded == 10
    assert accepted.outputs[0].text == "ab\n\n" + "<think>" * 9
    assert [step.reward is None for step in accepted.outputs[0].steps] == [False, True]


def test_the_start_says_so(thinking: TinyModels, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rsd_engine"), Engine(**thinking.sources(), device="cpu"):
        pass
    assert "it reads the letters of tokens that it lacks ('<think>', '</think>')" in caplog.text
