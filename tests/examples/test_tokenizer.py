"""The tokenizer: what the engine and the reward format rely on."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from examples.demo_family.data import chat_prompt
from examples.demo_family.tokenizer import SYSTEM_PROMPTS
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import DELIMITER, generate

PROBLEMS = generate(8, "test", 100)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(checkpoint_dir("target"))
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_the_vocabulary_is_shared_and_small(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) < 1000
    for role in ("draft", "prm"):
        other = AutoTokenizer.from_pretrained(checkpoint_dir(role))
        assert other.get_vocab() == tokenizer.get_vocab()


def test_digits_and_the_delimiter_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for digit in "0123456789":
        assert len(ids(tokenizer, digit)) == 1
    assert len(ids(tokenizer, "407")) == 3
    assert len(ids(tokenizer, DELIMITER)) == 1


def test_a_step_alone_has_the_tokens_it_has_in_the_solution(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    [separator] = ids(tokenizer, DELIMITER)
    for problem in PROBLEMS:
        joined: list[int] = []
        for step in problem.steps:
            joined += [*ids(tokenizer, step), separator]
        assert joined[:-1] == ids(tokenizer, problem.solution)
        prompt = chat_prompt(problem.question)
        assert ids(tokenizer, prompt + problem.solution) == (
            ids(tokenizer, prompt) + ids(tokenizer, problem.solution)
        )


@pytest.mark.parametrize("text", ["Héllo, wörld!\n\n\n x\t12", "你好 🙂", " \\boxed{3}.", "a  b"])
def test_any_text_survives_a_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text


@pytest.mark.parametrize("system", [None, SYSTEM_PROMPTS[0]])
def test_the_chat_template_is_what_training_used(
    tokenizer: PreTrainedTokenizerFast, system: str | None
) -> None:
    question = PROBLEMS[0].question
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == chat_prompt(question, system)


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|bos|>", "<|eos|>")
    assert ids(tokenizer, tokenizer.bos_token) == [tokenizer.bos_token_id]
    assert tokenizer.encode("Tom") == ids(tokenizer, "Tom")  # no bos is added unasked
