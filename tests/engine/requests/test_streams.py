"""Streams: a step at a time, final, adding up to the result; for plain code and for asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rsd_engine import Engine, FinishedEvent, SamplingParams, StepEvent
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from tests.engine.harness.runs import PROMPTS, all_pages_free, decisions, generate, short_launches
from tests.engine.harness.scripted import replaced, scripted

PARAMS = [
    SamplingParams(temperature=1.0, seed=3, max_tokens=50),
    SamplingParams(temperature=1.0, seed=4, max_tokens=50, stop=["é", "i", "$", "Y"]),
    SamplingParams(temperature=1.0, seed=3, max_tokens=50, stop=["\n\n\n\n", "no such text"]),
    SamplingParams(temperature=1.0, seed=6, max_tokens=30, skip_special_tokens=False),
    SamplingParams(temperature=0.0, seed=7, max_tokens=30, max_step_tokens=3, stop="y\ny"),
    SamplingParams(temperature=1.0, seed=8, max_tokens=40, stop=["d"], min_tokens=12,
                   include_stop_str_in_output=True),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(PARAMS)))
def test_kept_texts_add_up_to_the_result(engine: Engine, index: int) -> None:
    prompt, params = PROMPTS[index], PARAMS[index]
    events = list(engine.stream(prompt, params))
    *steps, last = events
    assert isinstance(last, FinishedEvent)
    [wanted] = generate(engine, [prompt], params)
    completion = last.output.outputs[0]
    assert completion.text == wanted.outputs[0].text
    assert decisions(last.output) == decisions(wanted)
    kept = [e for e in steps if isinstance(e, StepEvent) and e.kind == "kept"]
    rejected = [e for e in steps if isinstance(e, StepEvent) and e.kind == "rejected"]
    assert "".join(e.text for e in kept) == completion.text
    assert sum((e.token_ids for e in kept), ()) == completion.token_ids
    assert len(rejected) == last.output.metrics.steps_rejected
    assert [e.reward for e in rejected] == [
        s.rejected.reward for s in completion.steps if s.rejected
    ]
    assert {e.request_id for e in events} == {last.request_id}


def test_samples_of_one_stream_are_told_apart(engine: Engine) -> None:
    params = replace(PARAMS[1], n=5)
    *steps, last = engine.stream(PROMPTS[0], params)
    assert isinstance(last, FinishedEvent)
    [wanted] = generate(engine, [PROMPTS[0]], params)
    for index, completion in enumerate(last.output.outputs):
        kept = [e for e in steps if isinstance(e, StepEvent) and e.index == index]
        assert "".join(e.text for e in kept if e.kind == "kept") == completion.text
        assert decisions(last.output, index) == decisions(wanted, index)
    assert len({completion.text for completion in last.output.outputs}) > 2


def test_a_character_split_between_tokens_and_steps_comes_whole(engine: Engine) -> None:
    """A step limit may split é in two; its text comes with the second half."""
    with scripted(engine, "aé日b</s>", split_characters=True):
        params = SamplingParams(temperature=0.0, max_step_tokens=2, mode="draft")
        *steps, last = engine.stream("x", params)
    texts = [e.text for e in steps if isinstance(e, StepEvent) and e.text]
    assert texts == ["a", "é", "日", "b"]  # a+Ã | ©+æ | Ĺ+¥ | b+eos
    assert isinstance(last, FinishedEvent) and last.output.outputs[0].text == "aé日b"


def test_text_that_may_begin_a_stop_string_is_held_back(engine: Engine) -> None:
    with scripted(engine, "a\n\nbc\n\nd</s>"):
        params = SamplingParams(temperature=0.0, mode="draft", stop=["\n\nbd"])
        *steps, last = engine.stream("x", params)
    texts = [e.text for e in steps if isinstance(e, StepEvent) and e.text]
    assert texts == ["a", "\n\nbc", "\n\nd"]
    assert isinstance(last, FinishedEvent) and last.output.outputs[0].text == "a\n\nbc\n\nd"


def test_async_streams_run_together(engine: Engine) -> None:
    prompts, params = PROMPTS[:3], PARAMS[:3]
    alone = [generate(engine, [p], q)[0] for p, q in zip(prompts, params, strict=True)]
    order: list[int] = []

    async def consume(index: int) -> object:
        stream, texts = engine.stream(prompts[index], params[index]), list[str]()
        async for event in stream:
            order.append(index)
            assert isinstance(event, StepEvent | FinishedEvent)
            if isinstance(event, StepEvent) and event.kind == "kept":
                texts.append(event.text)
        assert stream.output is not None
        assert "".join(texts) == stream.output.outputs[0].text
        return stream.output

    async def together() -> list[object]:
        return await asyncio.gather(*(consume(i) for i in range(3)))

    with short_launches(engine, 4):
        outputs = asyncio.run(together())
    for output, wanted in zip(outputs, alone, strict=True):
        assert decisions(output) == decisions(wanted)  # type: ignore[arg-type]
    # They took turns: no stream waited for another to end.
    assert order != sorted(order, key=order.index)


def test_an_event_loop_goes_on_while_a_launch_runs(engine: Engine) -> None:
    """Another thread runs the core, in a pass that lasts until the test ends it."""
    forward = engine.parts.core.loop.forwards[Role.DRAFT]
    release, begun = threading.Event(), threading.Event()

    def held(batch: RowBatch) -> None:
        begun.set()
        assert release.wait(10.0)
        forward(batch)

    async def read() -> list[object]:
        return [event async for event in stream]

    async def main() -> list[object]:
        reading = asyncio.create_task(read())
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not reading.done() and not release.is_set()
        release.set()
        return await reading

    stream = engine.stream(PROMPTS[0], PARAMS[0])
    other = engine.stream(PROMPTS[1], PARAMS[1])
    with replaced(engine, Role.DRAFT, held), ThreadPoolExecutor(1) as pool:
        reader = pool.submit(list, other)
        assert begun.wait(10.0)
        started = time.monotonic()
        events = asyncio.run(main())
        assert isinstance(reader.result(timeout=60)[-1], FinishedEvent)
    assert isinstance(events[-1], FinishedEvent)
    assert time.monotonic() - started < 5.0  # the loop itself let the pass go on


def test_threads_share_an_engine(engine: Engine) -> None:
    alone = [generate(engine, [p], q)[0] for p, q in zip(PROMPTS, PARAMS, strict=True)]
    with short_launches(engine, 4), ThreadPoolExecutor(len(PROMPTS)) as pool:
        futures = [
            pool.submit(generate, engine, [p], q) for p, q in zip(PROMPTS, PARAMS, strict=True)
        ]
        together = [future.result(timeout=60)[0] for future in futures]
    assert [decisions(result) for result in together] == [decisions(result) for result in alone]


def test_leaving_a_stream_aborts_its_request(engine: Engine) -> None:
    params = replace(PARAMS[0], ignore_eos=True, max_tokens=200)
    with short_launches(engine, 2):
        for _event in engine.stream(PROMPTS[0], params):
            break
    assert not engine.parts.core.has_work and all_pages_free(engine)


def test_a_stream_closed_before_it_was_read(engine: Engine) -> None:
    with engine.stream(PROMPTS[0], PARAMS[0]):
        assert engine.parts.core.has_work
    assert not engine.parts.core.has_work


def test_a_stream_that_was_left_yields_nothing_more(engine: Engine) -> None:
    stream = engine.stream(PROMPTS[0], replace(PARAMS[0], ignore_eos=True, max_tokens=200))
    with short_launches(engine, 2):
        for _event in stream:
            break
    assert list(stream) == [] and stream.output is None
    ended = engine.stream(PROMPTS[0], PARAMS[0])
    assert list(ended) and list(ended) == [] and ended.output is not None


def test_a_chat_streams_too(engine: Engine) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    *_, last = engine.stream(messages, PARAMS[0])
    assert isinstance(last, FinishedEvent)
    assert last.output.prompt == "<s>Be brief.\n<|user|>1 + 1?<|assistant|>"
    [wanted] = engine.chat(messages, PARAMS[0], use_tqdm=False)
    assert decisions(last.output) == decisions(wanted)


def test_as_completed_yields_in_order_of_finishing(engine: Engine) -> None:
    params = [
        SamplingParams(temperature=0.0, mode="target", max_tokens=n, ignore_eos=True)
        for n in (40, 3, 20)
    ]
    with short_launches(engine, 4):
        found = list(engine.as_completed(["a", "b", "c"], params))
    assert [index for index, _ in found] == [1, 2, 0]
    assert [len(result.outputs[0].token_ids) for _, result in found] == [3, 20, 40]


def test_leaving_as_completed_aborts_the_rest(engine: Engine) -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (200, 2)]
    for index, _ in engine.as_completed(["a", "b"], params):
        assert index == 1
        break
    assert not engine.parts.core.has_work


def test_a_stream_may_be_read_in_turn_and_then_iterated(engine: Engine) -> None:
    [stream] = engine.streams([PROMPTS[0]], PARAMS[0])
    events = []
    while stream.output is None:
        stream.run()
        events += stream.take()
    assert isinstance(events[-1], FinishedEvent) and events[-1].output is stream.output
    assert list(stream) == []
