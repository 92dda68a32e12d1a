"""Samples, seeds, logprobs and penalties, as a request asks for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rsd_engine import Engine, SamplingParams
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import PROMPTS, Fresh, decisions, generate

PARAMS = SamplingParams(temperature=1.0, seed=9, max_tokens=30)


def test_n_samples_differ_and_each_can_be_had_again(engine: Engine) -> None:
    [many] = generate(engine, [PROMPTS[0]], replace(PARAMS, n=6))
    assert [completion.index for completion in many.outputs] == list(range(6))
    assert len({completion.token_ids for completion in many.outputs}) == 6
    [again] = generate(engine, [PROMPTS[0]], replace(PARAMS, n=6))
    [fewer] = generate(engine, [PROMPTS[0]], replace(PARAMS, n=2))
    for i in range(6):
        assert decisions(again, i) == decisions(many, i)
    for i in range(2):
        assert decisions(fewer, i) == decisions(many, i)
    # Counts of a request are those of all its samples.
    written = sum(len(c.token_ids) for c in many.outputs)
    assert many.metrics.draft.tokens_generated + many.metrics.target.tokens_generated == written


def test_seeds(engine: Engine) -> None:
    one, two = generate(engine, [PROMPTS[0]] * 2, [PARAMS, replace(PARAMS, seed=10)])
    assert decisions(one) != decisions(two) and (one.seed, two.seed) == (9, 10)
    drawn = generate(engine, [PROMPTS[0]] * 2, replace(PARAMS, seed=None))
    assert drawn[0].seed != drawn[1].seed and decisions(drawn[0]) != decisions(drawn[1])
    [again] = generate(engine, [PROMPTS[0]], replace(PARAMS, seed=drawn[0].seed))
    assert decisions(again) == decisions(drawn[0])
    [large] = generate(engine, [PROMPTS[0]], replace(PARAMS, seed=2**63 - 1))
    [truncated] = generate(engine, [PROMPTS[0]], replace(PARAMS, seed=2**31 - 1))
    assert decisions(large) != decisions(truncated)


def test_logprobs_are_those_of_the_model_that_wrote(engine: Engine) -> None:
    params = replace(PARAMS, logprobs=3, temperature=0.7, top_k=5, repetition_penalty=1.3)
    fresh = Fresh(engine)
    writers = set()
    for result in generate(engine, PROMPTS[:3], params):
        completion = result.outputs[0]
        assert completion.logprobs is not None and completion.cumulative_logprob is not None
        assert len(completion.logprobs) == len(completion.token_ids)
        row, entries, total = list(result.prompt_token_ids), iter(completion.logprobs), 0.0
        for step in completion.steps:
            writers.add(step.source)
            role = Role.DRAFT if step.source == "draft" else Role.TARGET
            for token in step.token_ids:
                entry = next(entries)
                wanted = fresh.logits(role, row).log_softmax(-1)
                best = wanted.topk(3)
                assert entry[token].logprob == pytest.approx(float(wanted[token]), abs=1e-4)
                ranked = [e.logprob for e in entry.values()][:3]
                assert ranked == pytest.approx(best.values.tolist(), abs=1e-4)
                assert [e.rank for e in entry.values()][:3] == [1, 2, 3]
                assert len(entry) == 3 + (entry[token].rank > 3)
                total += entry[token].logprob
                row.append(token)
        assert completion.cumulative_logprob == pytest.approx(total)
    assert writers == {"draft", "target"}


def test_logprobs_of_the_token_alone(engine: Engine) -> None:
    [result] = generate(engine, [PROMPTS[0]], replace(PARAMS, logprobs=0))
    completion = result.outputs[0]
    assert completion.logprobs is not None
    assert [list(entry) for entry in completion.logprobs] == [[t] for t in completion.token_ids]


def test_no_logprobs_unless_asked(engine: Engine) -> None:
    [result] = generate(engine, [PROMPTS[0]], PARAMS)
    assert result.outputs[0].logprobs is None and result.outputs[0].cumulative_logprob is None


def test_repetition_penalty_is_that_of_transformers(engine: Engine) -> None:
    """Greedy under a penalty equals the best penalised logit at every position."""
    from transformers import RepetitionPenaltyLogitsProcessor

    penalty = RepetitionPenaltyLogitsProcessor(1.5)
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.5, max_tokens=25, mode="target", ignore_eos=True
    )
    [result] = generate(engine, [PROMPTS[2]], params)
    [plain] = generate(engine, [PROMPTS[2]], replace(params, repetition_penalty=1.0))
    assert result.outputs[0].token_ids != plain.outputs[0].token_ids
    row, fresh = list(result.prompt_token_ids), Fresh(engine)
    for token in result.outputs[0].token_ids:
        logits = penalty(torch.tensor([row]), fresh.logits(Role.TARGET, row)[None])
        assert token == int(logits.argmax())
        row.append(token)


def test_draws_follow_the_distribution(engine: Engine) -> None:
    """The first token of many seeds against the model's own probabilities, cut by top-k."""
    count, k = 400, 8
    params = [
        SamplingParams(temperature=0.8, top_k=k, seed=s, max_tokens=1, mode="draft")
        for s in range(count)
    ]
    results = generate(engine, [PROMPTS[0]] * count, params)
    found = torch.zeros(engine.parts.models.num_ids)
    for result in results:
        found[result.outputs[0].token_ids[0]] += 1
    logits = Fresh(engine).logits(Role.DRAFT, results[0].prompt_token_ids).double() / 0.8
    kept = logits.topk(k).indices
    wanted = torch.zeros_like(logits).index_copy(0, kept, logits[kept].softmax(-1))
    assert float(found[wanted == 0].sum()) == 0
    chi2 = float(((found - count * wanted)[kept] ** 2 / (count * wanted[kept])).sum())
    assert chi2 < 24.3  # 7 degrees of freedom, p = 0.001


def test_padded_rows_of_the_vocabulary_are_never_sampled(engine: Engine) -> None:
    """Their logits are far above all others in the tiny models."""
    num_ids = len(engine.get_tokenizer())
    assert engine.parts.models.num_ids == num_ids
    sizes = {m.config.vocab_size for m in engine.parts.models.models.values()}
    assert min(sizes) > num_ids and len(sizes) == 3
    params = [
        replace(PARAMS, temperature=t, mode=m) for t in (0.0, 2.0) for m in ("draft", "target")
    ]
    for result in generate(engine, [PROMPTS[0]] * 4, params):
        assert max(result.outputs[0].token_ids) < num_ids
