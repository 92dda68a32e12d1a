"""What requests bring: numpy's numbers, unset values, one model alone, text cut into steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd_engine import Engine, FinishedEvent, SamplingParams, StepEvent, Threshold
from rsd_engine.core.engine_core import STREAM_TICKS
from rsd_engine.sampling_params import ModeName
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import PROMPTS, Fresh, decisions, generate, harsh, short_launches
from tests.engine.harness.scripted import scripted, spoiled
from tests.tiny_models import CONTEXT, TinyModels

GREEDY = SamplingParams(temperature=0.0, mode="draft")


@pytest.fixture(scope="module")
def alone(tiny: TinyModels) -> Iterator[Engine]:
    """The target alone, as a user starts it who wants no more than its text."""
    with Engine(target=tiny.target, max_num_seqs=4, device="cpu") as built:
        yield built


def test_numpys_numbers_are_taken_everywhere(engine: Engine, tiny: TinyModels) -> None:
    plain = SamplingParams(
        n=2, temperature=0.5, top_p=0.75, top_k=9, min_p=0.0625, repetition_penalty=1.25, seed=4,
        max_tokens=20, min_tokens=2, max_step_tokens=9, max_steps=8, logprobs=1,
        stop_token_ids=[7], ignore_eos=True, policy=Threshold(0.5),
    )  # fmt: skip
    numbers: dict[str, Any] = {
        "n": np.int64(2), "temperature": np.float32(0.5), "top_p": np.float64(0.75),
        "top_k": np.int32(9), "min_p": np.float16(0.0625), "seed": np.uint64(4),
        "repetition_penalty": np.float32(1.25), "max_tokens": np.int64(20),
        "min_tokens": np.uint8(2), "max_step_tokens": np.int16(9), "max_steps": np.int64(8),
        "logprobs": np.int64(1), "stop_token_ids": np.array([7]), "ignore_eos": np.bool_(True),
    }  # fmt: skip
    theirs = SamplingParams(**numbers, policy=Threshold(np.float64(0.5)))
    assert theirs == replace(plain, stop_token_ids=(7,))
    ids = engine.get_tokenizer().encode(PROMPTS[0])
    [one] = engine.generate(ids, plain, use_tqdm=False)
    [two] = engine.generate(list(np.array(ids)), theirs, use_tqdm=False)
    assert one.outputs == two.outputs
    json.dumps(two.to_dict(), allow_nan=False)
    options: dict[str, Any] = {
        "max_num_seqs": np.int64(1), "max_model_len": np.int32(64),
        "kv_cache_memory_bytes": np.int64(2**22), "gpu_memory_utilization": np.float32(0.5),
    }  # fmt: skip
    with Engine(target=tiny.target, device="cpu", **options) as small:
        assert len(generate(small, ["a"], SamplingParams(max_tokens=3, ignore_eos=True))) == 1


def test_seed_minus_one_draws_a_seed(engine: Engine) -> None:
    params = SamplingParams(seed=-1, max_tokens=4)
    assert params == SamplingParams(max_tokens=4)
    seeds = {result.seed for result in generate(engine, ["a"] * 3, params)}
    assert len(seeds) == 3 and min(seeds) >= 0


def test_max_tokens_none_goes_up_to_the_context(engine: Engine) -> None:
    params = SamplingParams(temperature=1.0, seed=4, ignore_eos=True, max_tokens=None, min_tokens=3)
    [result] = engine.generate([[5] * (CONTEXT - 20)], params, use_tqdm=False)
    assert len(result.outputs[0].token_ids) == 20
    assert result.outputs[0].finish_reason == "length"


def test_a_model_alone_writes_what_transformers_writes(alone: Engine, tiny: TinyModels) -> None:
    """Blank lines and more newlines included: nothing is cut at them."""
    model = AutoModelForCausalLM.from_pretrained(tiny.target, dtype=torch.float32).eval()
    num_ids = len(AutoTokenizer.from_pretrained(tiny.target))
    model.lm_head.weight.data[num_ids:] *= -1  # padded rows stand far above the others
    results = generate(alone, PROMPTS, SamplingParams(temperature=0.0, max_tokens=64))
    for result in results:
        ids = torch.tensor([result.prompt_token_ids])
        with torch.no_grad():
            wanted = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False,
                eos_token_id=1, pad_token_id=0,
            )  # fmt: skip
        assert result.outputs[0].token_ids == tuple(wanted[0, ids.shape[1] :].tolist())
        assert len(result.outputs[0].steps) == 1
    text = "".join(result.outputs[0].text for result in results)
    assert "\n\n\n\n" in text and "\n\n\n\n\n" in text


def test_four_newlines_stay_four(alone: Engine) -> None:
    two, three = alone.get_tokenizer().convert_tokens_to_ids(["ĊĊ", "ĊĊĊ"])
    a, eos = 40, alone.get_tokenizer().eos_token_id
    script = [a, three, two, a, three, eos]
    with scripted(alone, script, role=Role.TARGET):
        [result] = generate(alone, ["x"], SamplingParams(temperature=0.0))
    assert result.outputs[0].token_ids == tuple(script)
    assert result.outputs[0].text.count("\n") == 8


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=3, max_tokens=40, n=2, logprobs=1),
        SamplingParams(temperature=1.0, seed=5, max_tokens=40, stop=["\n\n\n\n", "no such text"]),
        SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, max_step_tokens=7),
    ],
)
def test_a_model_alone_streams_its_tokens(alone: Engine, params: SamplingParams) -> None:
    [wanted] = generate(alone, [PROMPTS[0]], params)
    *events, last = alone.stream(PROMPTS[0], params)
    assert isinstance(last, FinishedEvent)
    for index, completion in enumerate(last.output.outputs):
        found = [e for e in events if isinstance(e, StepEvent) and e.index == index]
        assert "".join(event.text for event in found) == completion.text
        assert sum((event.token_ids for event in found), ()) == completion.token_ids
        assert all(len(event.token_ids) <= 1 for event in found)
        assert {event.kind for event in found} == {"kept"}
        assert completion == wanted.outputs[index]


def test_tokens_come_while_the_model_goes_on(alone: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    with alone.stream(PROMPTS[0], params) as stream:
        core, compared = alone.parts.core, 0
        for count, event in enumerate(stream, 1):
            for slot in (slot for slot, key in enumerate(core.slot_keys) if key is not None):
                written = int(core.state.length[slot] - core.state.prompt_length[slot])
                assert isinstance(event, StepEvent) and len(event.token_ids) == 1
                assert count <= written < count + STREAM_TICKS
                compared += 1
        assert compared > 90


def test_what_was_streamed_stays_when_the_request_fails(alone: Engine) -> None:
    """Aborted, or with logits that are not finite: the result has the tokens that were told."""
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    with short_launches(alone, 2):
        stream = alone.stream("x", params)
        events = iter(stream)
        seen = [next(events) for _ in range(3)]
        alone.abort(stream.request_id)
        seen += list(events)
    *told, last = seen
    assert isinstance(last, FinishedEvent)
    completion = last.output.outputs[0]
    assert completion.finish_reason == "abort" and len(completion.token_ids) >= 3
    assert "".join(e.text for e in told if isinstance(e, StepEvent)) == completion.text
    assert completion.steps[0].text == completion.text
    with short_launches(alone, 2):
        stream = alone.stream("x", params)
        events = iter(stream)
        seen = [next(events) for _ in range(3)]
        with spoiled(alone, Role.TARGET, float("nan"), prompt_length=2):
            seen += list(events)
    *told, last = seen
    assert isinstance(last, FinishedEvent)
    completion = last.output.outputs[0]
    assert completion.finish_reason == "error" and len(completion.token_ids) >= 3
    assert "".join(e.text for e in told if isinstance(e, StepEvent)) == completion.text


def test_a_request_that_is_not_streamed_tells_its_steps_alone(alone: Engine) -> None:
    """One record in the log for the whole output, however long."""
    core, params = alone.parts.core, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    with short_launches(alone, 100):
        generate(alone, ["x"], params)
    assert int(core.state.log_head) < 2 * 30


@pytest.mark.parametrize("stop", [None, "日d", "é日"])
@pytest.mark.parametrize("include", [False, True])
def test_the_texts_of_steps_add_up(engine: Engine, stop: str | None, include: bool) -> None:
    """Characters, and a stop string, whose bytes straddle steps."""
    params = replace(
        GREEDY, max_step_tokens=2, stop=stop, include_stop_str_in_output=include, logprobs=1
    )
    with scripted(engine, "aé日b\n\n日日d</s>", split_characters=True):
        [result] = generate(engine, ["x"], params)
    completion = result.outputs[0]
    texts = [step.text for step in completion.steps]
    assert "".join(texts) == completion.text and "\ufffd" not in completion.text
    if stop is None:
        assert completion.text == "aé日b\n\n日日d" and texts[:4] == ["a", "é", "日", "b\n"]


def test_the_texts_of_random_steps_add_up(engine: Engine) -> None:
    params = [
        SamplingParams(temperature=1.0, seed=s, max_tokens=40, stop=["\n\n\n\n", "i", "é"],
                       max_step_tokens=[3, None][s % 2], skip_special_tokens=bool(s % 3))
        for s in range(6)
    ]  # fmt: skip
    for result in generate(engine, PROMPTS, params):
        completion = result.outputs[0]
        assert "".join(step.text for step in completion.steps) == completion.text


def test_a_rejected_step_shows_the_character_that_it_completed(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_step_tokens=2, max_tokens=6, policy=Threshold(1.1))
    with (
        scripted(engine, "aé日b</s>", split_characters=True),
        scripted(engine, "aé日b</s>", split_characters=True, role=Role.TARGET),
    ):
        [result] = generate(engine, ["x"], params)
    steps = result.outputs[0].steps
    assert [step.text for step in steps] == ["a", "é", "日"]
    assert [step.rejected.text for step in steps if step.rejected] == ["a\ufffd", "é\ufffd", "日"]


def test_bytes_of_partial_characters(engine: Engine) -> None:
    with scripted(engine, "é日</s>", split_characters=True):
        [result] = generate(engine, ["x"], replace(GREEDY, logprobs=0))
    completion = result.outputs[0]
    assert completion.logprobs is not None
    entries = [entry[t] for t, entry in zip(completion.token_ids, completion.logprobs, strict=True)]
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "é日"
    assert [entry.decoded_token for entry in entries[:2]] == ["\ufffd", "\ufffd"]
    assert json.loads(json.dumps(result.to_dict()))["outputs"][0]["logprobs"][0]


def test_events_have_the_logprobs_of_their_tokens(engine: Engine, alone: Engine) -> None:
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=20, logprobs=2)
    for built in (engine, alone):
        *events, last = built.stream(PROMPTS[0], params)
        assert isinstance(last, FinishedEvent)
        kept = [e for e in events if isinstance(e, StepEvent) and e.kind == "kept"]
        told = sum((event.logprobs or () for event in kept), ())
        assert told == last.output.outputs[0].logprobs and len(told) > 3
        assert all(len(event.logprobs or ()) == len(event.token_ids) for event in kept)
    *events, _ = engine.stream(PROMPTS[0], replace(params, logprobs=None))
    assert all(isinstance(e, StepEvent) and e.logprobs is None for e in events)


@pytest.mark.parametrize("mode", ["rsd", "target", "draft"])
def test_logprobs_of_the_prompt(engine: Engine, mode: ModeName) -> None:
    """By the target, or the draft alone; what comes after is the same as without them."""
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=12, mode=mode, n=2)
    fresh = Fresh(engine)
    role = Role.DRAFT if mode == "draft" else Role.TARGET
    with harsh(engine):
        found = generate(engine, PROMPTS[:4], replace(params, prompt_logprobs=3))
    for result, plain in zip(found, generate(engine, PROMPTS[:4], params), strict=True):
        assert [decisions(result, i) for i in range(2)] == [decisions(plain, i) for i in range(2)]
        assert plain.prompt_logprobs is None and result.prompt_logprobs is not None
        first, *entries = result.prompt_logprobs
        ids = result.prompt_token_ids
        assert first is None and len(entries) == len(ids) - 1
        for i in {1, 2, len(ids) // 2, len(ids) - 1} & set(range(1, len(ids))):
            wanted = fresh.logits(role, ids[:i]).log_softmax(-1)
            entry = entries[i - 1] or {}
            assert entry[ids[i]].logprob == pytest.approx(float(wanted[ids[i]]), abs=1e-4)
            assert entry[ids[i]].rank == int((wanted > wanted[ids[i]]).sum()) + 1
            best = [e.logprob for e in entry.values() if e.rank <= 3]
            assert best == pytest.approx(wanted.topk(3).values.tolist(), abs=1e-4)
    json.dumps(found[0].to_dict(), allow_nan=False)


def test_a_prompt_of_one_token_has_no_logprobs(engine: Engine) -> None:
    [result] = engine.generate([5], SamplingParams(prompt_logprobs=0, max_tokens=2), use_tqdm=False)
    assert result.prompt_logprobs == (None,)


def test_a_truncated_prompt_keeps_its_last_tokens(engine: Engine) -> None:
    ids = engine.get_tokenizer().encode(PROMPTS[2])
    params = SamplingParams(temperature=0.0, max_tokens=9, truncate_prompt_tokens=4)
    [cut] = engine.generate(PROMPTS[2], params, use_tqdm=False)
    short = {"prompt_token_ids": ids[-4:], "question": PROMPTS[2]}
    [wanted] = engine.generate(short, replace(params, truncate_prompt_tokens=99), use_tqdm=False)
    assert cut.prompt_token_ids == wanted.prompt_token_ids == tuple(ids[-4:])
    assert decisions(cut) == decisions(wanted)
    long = replace(params, mode="target")
    [fits] = engine.generate([[5] * (2 * CONTEXT)], long, use_tqdm=False)
    assert len(fits.prompt_token_ids) == 4


def test_a_stop_token_is_in_the_text_only_if_asked_for(engine: Engine) -> None:
    [b] = engine.get_tokenizer().encode("b", add_special_tokens=False)
    params = replace(GREEDY, stop_token_ids=[b])
    with scripted(engine, "abc</s>"):
        [without] = generate(engine, ["x"], params)
        [included] = generate(engine, ["x"], replace(params, include_stop_str_in_output=True))
    assert without.outputs[0].text == "a" and included.outputs[0].text == "ab"
    assert without.outputs[0].token_ids == included.outputs[0].token_ids
    assert without.outputs[0].stop_reason == included.outputs[0].stop_reason == b
    shown = replace(GREEDY, skip_special_tokens=False)
    with scripted(engine, "a</s>"):
        [plain] = generate(engine, ["x"], shown)
        [eos] = generate(engine, ["x"], replace(shown, include_stop_str_in_output=True))
    assert (plain.outputs[0].text, eos.outputs[0].text) == ("a", "a</s>")
    assert decisions(plain) == decisions(eos)
