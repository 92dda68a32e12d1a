"""What ends an output, and what it is called: stop strings, tokens, steps, lengths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.outputs import CompletionOutput
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import PROMPTS, generate
from tests.engine.harness.scripted import scripted
from tests.tiny_models import CONTEXT, TinyModels

GREEDY = SamplingParams(temperature=0.0, mode="draft")


def write(
    engine: Engine, text: str | list[int], params: SamplingParams, *, split_characters: bool = False
) -> CompletionOutput:
    """The completion of one request whose draft writes `text`."""
    with scripted(engine, text, split_characters=split_characters):
        return generate(engine, ["x"], params)[0].outputs[0]


@pytest.mark.parametrize(
    ("text", "stop", "kept", "reason"),
    [
        ("abc def</s>", "c d", "ab", "c d"),  # across tokens
        ("ab\n\ncd</s>", "\n\nc", "ab", "\n\nc"),  # across a step
        ("ab\n\n\n\ncd\n\nef</s>", "d\n\ne", "ab\n\n\n\nc", "d\n\ne"),
        ("a.\n\nb</s>", ".\n", "a", ".\n"),  # ends inside the token `.\n\n`
        ("abcabd</s>", ["abd", "zz"], "abc", "abd"),
        ("abcd</s>", ["bcd", "c"], "ab", "c"),  # the one that is complete first
        ("abcd</s>", ["d", "bcd"], "a", "bcd"),  # of two that end together, the longer
        ("aéb</s>", "é", "a", "é"),
        ("abc</s>", "x", "abc", None),
    ],
)
@pytest.mark.parametrize("split", [False, True], ids=["tokens", "bytes"])
def test_stop_strings(
    engine: Engine, text: str, stop: str, kept: str, reason: str | None, split: bool
) -> None:
    completion = write(engine, text, replace(GREEDY, stop=stop), split_characters=split)
    assert completion.text == kept
    assert (completion.finish_reason, completion.stop_reason) == ("stop", reason)
    if reason:
        included = replace(GREEDY, stop=stop, include_stop_str_in_output=True)
        assert write(engine, text, included, split_characters=split).text == kept + reason


def test_a_stop_string_in_a_rejected_step_does_not_count(engine: Engine) -> None:
    params = replace(GREEDY, mode=None, policy=Threshold(1.1), stop=["\n\nc"])
    with scripted(engine, "ab\n\n"), scripted(engine, "c\n\nX</s>", role=Role.TARGET):
        [result] = generate(engine, ["x"], params)
    assert result.outputs[0].text == "c\n\nX" and result.outputs[0].stop_reason is None
    rejected = result.outputs[0].steps[0].rejected
    assert rejected is not None and rejected.text == "ab\n\n"


def test_stop_token_ids(engine: Engine) -> None:
    tokenizer = engine.get_tokenizer()
    [b] = tokenizer.encode("b", add_special_tokens=False)
    completion = write(engine, "abc</s>", replace(GREEDY, stop_token_ids=[b]))
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("a", "stop", b)
    completion = write(engine, "acd</s>", replace(GREEDY, stop_token_ids=[b]))
    assert (completion.text, completion.finish_reason, completion.stop_reason) == (
        "acd", "stop", None,
    )  # fmt: skip


def test_ignore_eos(engine: Engine) -> None:
    params = replace(GREEDY, ignore_eos=True, max_tokens=9)
    completion = write(engine, "ab</s>", params)
    assert completion.finish_reason == "length" and len(completion.token_ids) == 9
    assert completion.text == "ab"  # special tokens are left out
    shown = write(engine, "ab</s>", replace(params, skip_special_tokens=False))
    assert shown.text == "ab" + "</s>" * 7


def test_min_tokens_holds_back_every_stop(engine: Engine) -> None:
    """The script tries to end after two tokens, and at every token after that."""
    params = replace(GREEDY, min_tokens=5, stop_token_ids=[10], max_tokens=20)
    completion = write(engine, "ab</s>", params)
    assert completion.finish_reason == "stop" and len(completion.token_ids) == 6
    eos = engine.get_tokenizer().eos_token_id
    assert completion.token_ids[-1] == eos
    assert not {eos, 10} & set(completion.token_ids[:-1])
    stopped = write(engine, "abababab</s>", replace(GREEDY, min_tokens=4, stop="ab"))
    assert stopped.text == "abab" and stopped.stop_reason == "ab"


def test_max_steps(engine: Engine) -> None:
    completion = write(engine, "a\n\nb\n\nc\n\nd</s>", replace(GREEDY, max_steps=2))
    assert (completion.text, completion.finish_reason) == ("a\n\nb\n\n", "steps")
    # The last step allowed ends the output for its own reason, if it has one.
    completion = write(engine, "a\n\nb</s>", replace(GREEDY, max_steps=2))
    assert (completion.text, completion.finish_reason) == ("a\n\nb", "stop")


@pytest.mark.parametrize("policy", [Threshold(0.0), Threshold(1.1)])
def test_max_step_tokens(engine: Engine, policy: Threshold) -> None:
    params = SamplingParams(
        temperature=1.0, seed=1, max_tokens=50, max_step_tokens=4, policy=policy, ignore_eos=True
    )
    for result in generate(engine, PROMPTS, params):
        steps = result.outputs[0].steps
        assert all(1 <= len(step.token_ids) <= 4 for step in steps)
        without_delimiter = [s for s in steps[:-1] if not s.text.endswith("\n\n")]
        assert without_delimiter and all(len(s.token_ids) == 4 for s in without_delimiter)


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 20])
@pytest.mark.parametrize("policy", [Threshold(0.0), Threshold(0.5), Threshold(1.1)])
def test_max_tokens_counts_kept_tokens(engine: Engine, max_tokens: int, policy: Threshold) -> None:
    params = SamplingParams(
        temperature=1.0, seed=4, max_tokens=max_tokens, ignore_eos=True, policy=policy
    )
    for result in generate(engine, PROMPTS, params):
        completion = result.outputs[0]
        assert len(completion.token_ids) == max_tokens and completion.finish_reason == "length"
        assert all(s.token_ids for s in completion.steps)


def test_the_context_ends_an_output(engine: Engine) -> None:
    params = SamplingParams(temperature=1.0, seed=4, ignore_eos=True, max_steps=500)
    [result] = engine.generate([[5] * (CONTEXT - 20)], params, use_tqdm=False)
    assert len(result.outputs[0].token_ids) == 20
    assert result.outputs[0].finish_reason == "length"


def test_tokens_past_the_delimiter_are_cut(engine: Engine) -> None:
    """One token of three newlines: the step ends after two, as the text-level rule says."""
    tokenizer = engine.get_tokenizer()
    a, b, three, two = tokenizer.convert_tokens_to_ids(["a", "b", "ĊĊĊ", "ĊĊ"])
    params = replace(GREEDY, logprobs=1)
    completion = write(engine, [a, three, b, tokenizer.eos_token_id], params)
    assert [step.text for step in completion.steps] == ["a\n\n", "b"]
    assert completion.token_ids == (a, two, b, tokenizer.eos_token_id)
    assert completion.logprobs is not None and len(completion.logprobs) == 4


def test_plain_decoding_has_one_step(tiny: TinyModels) -> None:
    with Engine(target=tiny.target, device="cpu") as engine:
        params = SamplingParams(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True)
        [result] = generate(engine, [PROMPTS[0]], params)
    assert len(result.outputs[0].steps) == 1 and "\n\n" in result.outputs[0].text


def test_other_delimiters(tiny: TinyModels) -> None:
    with Engine(draft=tiny.draft, step_delimiters=["b", ";;"], device="cpu") as engine:
        completion = write(engine, "aab;c;;;d\n\ne</s>", SamplingParams(temperature=0.0))
    assert [step.text for step in completion.steps] == ["aab", ";c;;", ";d\n\ne"]
