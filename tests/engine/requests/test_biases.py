"""Biases, allowed ids, bad words and penalties: exact at every position, and per request."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.sampling_params import ModeName
from rsd_kernels.state.enums import MAX_BAD_WORDS, MAX_BIASED_TOKENS, Role
from tests.engine.harness.runs import PROMPTS, Fresh, decisions, generate, harsh
from tests.engine.harness.scripted import scripted

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, seed=6, max_tokens=24)


def adjusted(
    logits: Tensor, prompt: Sequence[int], output: Sequence[int], params: SamplingParams,
    bad_words: Sequence[Sequence[int]] = (),
) -> Tensor:  # fmt: skip
    """The formulas one id at a time, in vLLM's order."""
    values = logits.double().tolist()
    for i in range(len(values)):
        if params.allowed_token_ids is not None and i not in params.allowed_token_ids:
            values[i] = -math.inf
        values[i] += (params.logit_bias or {}).get(i, 0.0)
    for *before, last in bad_words:
        if list(output[len(output) - len(before) :]) == before:
            values[last] = -math.inf
    counts, penalty = Counter(output), params.repetition_penalty
    for i in {*prompt, *output}:
        values[i] = values[i] / penalty if values[i] > 0 else values[i] * penalty
    for i, count in counts.items():
        values[i] -= params.frequency_penalty * count + params.presence_penalty
    return torch.tensor(values)


def check_greedy(
    engine: Engine, params: SamplingParams, bad_words: Sequence[Sequence[int]] = ()
) -> list[tuple[int, ...]]:
    """Every token is the best adjusted one, over the steps that were kept; returns the outputs."""
    fresh = Fresh(engine)
    results = generate(engine, PROMPTS[:3], params)
    for result in results:
        prompt, output = list(result.prompt_token_ids), list[int]()
        for step in result.outputs[0].steps:
            role = Role.DRAFT if step.source == "draft" else Role.TARGET
            for token in step.token_ids:
                logits = fresh.logits(role, prompt + output)
                wanted = adjusted(logits, prompt, output, params, bad_words)
                assert wanted[token] >= wanted.max() - 1e-4
                output.append(token)
    return [result.outputs[0].token_ids for result in results]


@pytest.mark.parametrize(
    "changes",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.75},
        {"frequency_penalty": -0.5, "presence_penalty": -0.25},
        {"frequency_penalty": 2.0, "presence_penalty": 2.0, "repetition_penalty": 1.3},
        {"logit_bias": {40: 4.0, 41: -100.0, 42: 2.5}},
        {"logit_bias": {40: 3.0, 50: -2.0}, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"allowed_token_ids": [40, 41, 45, 60, 61, 62]},
        {"allowed_token_ids": [40, 41, 45], "logit_bias": {41: 2.0, 99: 9.0},
         "presence_penalty": 1.0},
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["target", "rsd"])
def test_the_best_adjusted_logit_is_taken(
    engine: Engine, changes: dict[str, Any], mode: ModeName
) -> None:
    """Under RSD steps are rejected too: tokens that were not kept do not count."""
    params = replace(GREEDY, mode=mode, policy=Threshold(0.6), max_step_tokens=4, **changes)
    found = check_greedy(engine, params)
    plain = generate(
        engine, PROMPTS[:3], replace(GREEDY, mode=mode, policy=Threshold(0.6), max_step_tokens=4)
    )
    assert found != [result.outputs[0].token_ids for result in plain]
    if params.allowed_token_ids:
        assert {t for output in found for t in output} <= set(params.allowed_token_ids)


def test_bad_words_are_not_written(engine: Engine) -> None:
    """Words of one token and of several; also with a space before them."""
    tokenizer = engine.get_tokenizer()
    [plain] = generate(engine, [PROMPTS[0]], GREEDY)
    pair = re.search(r"\S\S", plain.outputs[0].text)
    assert pair is not None
    words = [pair[0], "\n\n\n!", "a"]
    params = replace(GREEDY, bad_words=words)
    sequences = [tokenizer.encode(word.lstrip(), add_special_tokens=False) for word in words]
    found = check_greedy(engine, params, sequences)
    assert found[0] != plain.outputs[0].token_ids
    for output in found:
        for word in sequences:
            assert all(list(output[i : i + len(word)]) != word for i in range(len(output)))


def test_a_bad_word_is_not_looked_for_in_the_prompt(engine: Engine) -> None:
    a, b = engine.get_tokenizer().encode("ab", add_special_tokens=False)
    params = replace(GREEDY, bad_words=["ab"], mode="draft", max_tokens=3)
    with scripted(engine, [b, a, b, b]):
        [result] = engine.generate([[0, a]], params, use_tqdm=False)
    assert result.outputs[0].token_ids[:2] == (b, a) and result.outputs[0].token_ids[2] != b


def test_requests_of_one_batch_do_not_touch_each_other(engine: Engine) -> None:
    """Sampled ones too, preempted and resumed, with neighbours that want something else."""
    params = [
        SAMPLED,
        replace(SAMPLED, presence_penalty=1.0, frequency_penalty=0.5),
        replace(SAMPLED, logit_bias={45: 5.0, 46: -5.0}, logprobs=2),
        replace(SAMPLED, allowed_token_ids=list(range(30, 90)), top_k=5),
        replace(SAMPLED, bad_words=["a", "e", "the"], min_tokens=4),
        replace(SAMPLED, repetition_penalty=1.3, logprobs=0),
    ]
    alone = [generate(engine, [p], q)[0] for p, q in zip(PROMPTS, params, strict=True)]
    with harsh(engine):
        together = generate(engine, PROMPTS, params)
    assert [decisions(r) for r in together] == [decisions(r) for r in alone]
    plain = generate(engine, PROMPTS[1:5], SAMPLED)
    assert all(decisions(a) != decisions(b) for a, b in zip(alone[1:5], plain, strict=True))


def test_nothing_changes_where_nothing_is_asked_for(engine: Engine) -> None:
    """Zero penalties and empty lists draw the same tokens, from the same random numbers."""
    idle = replace(SAMPLED, presence_penalty=0.0, logit_bias={}, bad_words=[])
    zero = replace(SAMPLED, logit_bias={7: 0.0})
    every = replace(SAMPLED, allowed_token_ids=list(range(engine.parts.models.num_ids)))
    [wanted] = generate(engine, [PROMPTS[0]], SAMPLED)
    for params in (idle, zero, every):
        [found] = generate(engine, [PROMPTS[0]], params)
        assert decisions(found) == decisions(wanted)


def test_draws_follow_the_adjusted_distribution(engine: Engine) -> None:
    allowed, count = [40, 41, 42, 43], 300
    bias = {40: 1.0, 43: -1.0}
    params = [
        SamplingParams(temperature=1.0, seed=s, max_tokens=1, mode="draft",
                       allowed_token_ids=allowed, logit_bias=bias)
        for s in range(count)
    ]  # fmt: skip
    results = generate(engine, [PROMPTS[0]] * count, params)
    found = Counter(result.outputs[0].token_ids[0] for result in results)
    logits = Fresh(engine).logits(Role.DRAFT, results[0].prompt_token_ids).double()
    wanted = (logits[allowed] + torch.tensor([1.0, 0.0, 0.0, -1.0])).softmax(-1)
    expected = count * wanted
    counts = torch.tensor([found[token] for token in allowed])
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 16.3 and set(found) <= set(allowed)  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    "changes",
    [{}, {"repetition_penalty": 1.5}, {"frequency_penalty": 1.0}, {"logit_bias": {40: 6.0}},
     {"allowed_token_ids": [40, 41, 42, 43, 44]}, {"min_tokens": 20}],
)  # fmt: skip
def test_logprobs_and_ranks_are_those_of_the_model(engine: Engine, changes: dict[str, Any]) -> None:
    """Whatever was changed before the draw; the rank also of a token that is not among the best."""
    params = replace(SAMPLED, logprobs=2, mode="target", **changes)
    fresh, ranks = Fresh(engine), []
    for result in generate(engine, PROMPTS[:2], params):
        row = list(result.prompt_token_ids)
        assert result.outputs[0].logprobs is not None
        for token, entry in zip(
            result.outputs[0].token_ids, result.outputs[0].logprobs, strict=True
        ):
            wanted = fresh.logits(Role.TARGET, row).log_softmax(-1)
            assert entry[token].logprob == pytest.approx(float(wanted[token]), abs=1e-4)
            above = int((wanted > wanted[token] + 1e-4).sum())
            near = int((wanted > wanted[token] - 1e-4).sum())
            assert above < entry[token].rank <= near
            ranks.append(entry[token].rank)
            row.append(token)
    assert max(ranks) > 3


def test_every_token_forbidden_is_an_error_of_the_request(engine: Engine) -> None:
    eos = engine.get_tokenizer().eos_token_id
    for temperature in (0.0, 1.0):
        params = replace(GREEDY, ignore_eos=False, temperature=temperature, min_tokens=3,
                         allowed_token_ids=[eos], mode="target")  # fmt: skip
        [result, good] = generate(engine, [PROMPTS[0]] * 2, [params, GREEDY])
        assert result.outputs[0].finish_reason == "error"
        assert "left no token to sample" in (result.outputs[0].error or "")
        assert good.outputs[0].error is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"presence_penalty": 2.5}, "presence_penalty must be in"),
        ({"frequency_penalty": "x"}, "frequency_penalty must be a number"),
        ({"logit_bias": [1]}, "logit_bias must map"),
        ({"logit_bias": {-1: 1.0}}, r"token id of logit_bias must be in \[0, 2147483647\], got -1"),
        ({"logit_bias": {"a": 1.0}}, "token id of logit_bias must be an integer in .*, got 'a'"),
        ({"logit_bias": {5: 101}}, r"logit_bias\[5\] must be in \[-100, 100\], got 101"),
        ({"logit_bias": dict.fromkeys(range(MAX_BIASED_TOKENS + 1), 1.0)}, "at most 1024 ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"allowed_token_ids": "12"}, "allowed_token_ids must be a list"),
        ({"allowed_token_ids": range(MAX_BIASED_TOKENS + 1)}, "at most 1024 ids, got 1025"),
        ({"bad_words": "no"}, "bad_words must be a list"),
        ({"bad_words": [" "]}, "bad_words must hold strings"),
        ({"bad_words": ["a"] * (MAX_BAD_WORDS + 1)}, "bad_words may hold at most 128 words"),
    ],
)
def test_what_no_request_may_ask_for(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingParams(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logit_bias": {10**6: 1.0}}, r"logit_bias must have ids in \[0, \d+\], got 1000000"),
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids must have ids in"),
        ({"bad_words": ["abcdefghijklmnopqrstuvw"]}, "may have 16 tokens, got 'abcdefghij"),
    ],
)
def test_what_this_engine_cannot_do(engine: Engine, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generate(engine, ["a"], SamplingParams(**changes))


def test_ids_of_a_bias_may_be_text_as_in_json() -> None:
    params = SamplingParams.from_dict({"logit_bias": {"40": 3, "41": -1.5}})
    assert params.logit_bias == {40: 3.0, 41: -1.5}
