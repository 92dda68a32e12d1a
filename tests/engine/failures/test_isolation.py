"""Whatever fails while a request is admitted or runs ends that request, with its cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from rsd_engine import Engine, FinishedEvent, RequestOutput, SamplingParams, Threshold
from rsd_engine.core import admission, running
from rsd_engine.engine.results.sample import SampleBuilder
from rsd_engine.loop.program import Call
from rsd_engine.outputs import Endings, EngineDeadError, Errors
from rsd_engine.steps.detokenize import Detokenizer
from rsd_kernels.state.enums import NUM_ROLES
from tests.engine.harness.runs import all_pages_free, decisions, generate
from tests.tiny_models import TinyModels

GOOD = ["ab", "abcd", "abcde"]
BAD = "abc"  # the only prompt of four tokens, with bos
PARAMS = SamplingParams(temperature=1.0, seed=2, max_tokens=30, policy=Threshold(0.5))
EXECUTORS = ("eager", "profile", "simulated-loop")
ERRORS = (MemoryError("no memory"), ArithmeticError("two\nlines"), AssertionError())
OPS = (
    *(f"{role}.{op}" for role in ("DRAFT", "TARGET") for op in ("forward", "write")),
    "PRM.forward", "PRM.score",
)  # fmt: skip


@pytest.fixture(scope="module", params=EXECUTORS)
def any_engine(tiny: TinyModels, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(**tiny.sources(), device="cpu", max_num_seqs=4, executor=request.param) as built:
        yield built


@pytest.fixture(scope="module")
def wanted(tiny: TinyModels) -> list[RequestOutput]:
    with Engine(**tiny.sources(), device="cpu") as built:
        return generate(built, GOOD, PARAMS)


@contextmanager
def failing(engine: Engine, op: str, error: Exception, *, when: str = BAD) -> Iterator[None]:
    """The op raises `error` in each pass that reads a slot whose prompt is as long as `when`."""
    state, batch = engine.parts.core.state, engine.parts.core.loop.batch
    length, run = len(when) + 1, Call.run

    def fails(call: Call) -> None:
        if int(state.pass_role) < NUM_ROLES or op == "schedule":
            slots = batch.seq_slot[: int(state.num_seqs)].tolist()
            if call.name == op and any(int(state.prompt_length[s]) == length for s in slots):
                run(replace(call, fn=lambda: raised(error)))
        run(call)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Call, "run", fails)
        yield


def raised(error: Exception) -> None:
    raise error


def assert_only_bad_failed(
    engine: Engine, results: list[RequestOutput], wanted: list[RequestOutput], said: str
) -> None:
    *good, bad = results
    assert [decisions(r) for r in good] == [decisions(r) for r in wanted]
    assert all(r.outputs[0].error is None for r in good)
    assert bad.outputs[0].finish_reason == "error"
    assert bad.outputs[0].error is not None and "\n" not in bad.outputs[0].error
    assert said in bad.outputs[0].error
    assert all_pages_free(engine) and not engine.parts.core.has_work
    assert engine.check_integrity() == []
    again = generate(engine, GOOD, PARAMS)
    assert [decisions(r) for r in again] == [decisions(r) for r in wanted]


@pytest.mark.parametrize("op", OPS)
def test_an_op_that_fails_for_one_request(
    any_engine: Engine, op: str, wanted: list[RequestOutput]
) -> None:
    """Beside three others, and one more that waits for a slot."""
    error = ERRORS[OPS.index(op) % len(ERRORS)]
    before = any_engine.metrics
    with failing(any_engine, op, error):
        *good, queued, bad = generate(any_engine, [*GOOD, GOOD[0], BAD], PARAMS)
    assert decisions(queued) == decisions(wanted[0])
    assert bad.metrics.errors == Errors(op=1) and bad.metrics.endings == Endings(error=1)
    assert any_engine.metrics.errors.op == before.errors.op + 1
    said = f"{op} failed: {type(error).__name__}"
    assert_only_bad_failed(any_engine, [*good, bad], wanted, said)


def test_a_failure_ends_a_stream_with_its_error(
    engine: Engine, wanted: list[RequestOutput]
) -> None:
    bad, good = engine.stream(BAD, PARAMS), engine.stream(GOOD[0], PARAMS)
    with failing(engine, "PRM.score", MemoryError("no memory")):
        *_, end = bad
        *_, last = good
    assert isinstance(end, FinishedEvent) and isinstance(last, FinishedEvent)
    assert end.output.outputs[0].error == "PRM.score failed: MemoryError: no memory"
    assert decisions(last.output) == decisions(wanted[0])


def test_every_pass_fails(any_engine: Engine, wanted: list[RequestOutput]) -> None:
    """All end with the error, also those in the queue, and the next ones run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Call, "run", replaced_forward)
        results = generate(any_engine, [*GOOD, BAD] * 3, PARAMS)
    assert {r.outputs[0].finish_reason for r in results} == {"error"}
    assert any_engine.check_integrity() == [] and all_pages_free(any_engine)
    again = generate(any_engine, GOOD, PARAMS)
    assert [decisions(r) for r in again] == [decisions(r) for r in wanted]


RUN = Call.run


def replaced_forward(call: Call) -> None:
    RUN(replace(call, fn=lambda: raised(OSError("gone"))) if "forward" in call.name else call)


def test_a_schedule_that_fails_ends_what_runs_alone(
    engine: Engine, wanted: list[RequestOutput]
) -> None:
    def no_schedule(call: Call) -> None:
        RUN(replace(call, fn=lambda: raised(OSError("gone"))) if call.name == "schedule" else call)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Call, "run", no_schedule)
        results = generate(engine, [*GOOD, BAD] * 2, PARAMS)
    assert {r.outputs[0].error for r in results} == {"schedule failed: OSError: gone"}
    assert_fine(engine, wanted)


def assert_fine(engine: Engine, wanted: list[RequestOutput]) -> None:
    assert engine.check_integrity() == [] and all_pages_free(engine)
    again = generate(engine, GOOD, PARAMS)
    assert [decisions(r) for r in again] == [decisions(r) for r in wanted]


@pytest.mark.parametrize("name", ["running.fill_slot", "admission.read_prompt"])
@pytest.mark.parametrize("late", [False, True])
def test_a_request_that_cannot_be_started(
    engine: Engine,
    name: str,
    late: bool,
    wanted: list[RequestOutput],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = {"running": running, "admission": admission}[name.split(".")[0]]
    name = name.split(".")[1]
    real = getattr(module, name)

    def fails(*args: Any, **kwargs: Any) -> Any:
        bad = len(BAD) + 1 in (len(getattr(args[-1], "prompt", ())), given_length(engine, args))
        if bad and not late:
            raise MemoryError("no memory")
        found = real(*args, **kwargs)
        if bad:
            raise MemoryError("no memory")
        return found

    monkeypatch.setattr(module, name, fails)
    params = replace(PARAMS, prompt_logprobs=1)
    results = generate(engine, [*GOOD, BAD], params)
    assert results[-1].metrics.errors == Errors(admission=1)
    assert all(r.prompt_logprobs for r in results[:-1])
    said = "starting the request failed: MemoryError: no memory"
    assert_only_bad_failed(engine, results, wanted, said)


def given_length(engine: Engine, args: tuple[Any, ...]) -> int:
    """Of the prompt in the slot that `read_prompt` is called for."""
    return int(engine.parts.core.state.prompt_length[args[1]]) if isinstance(args[1], int) else 0


def test_the_bridge_of_the_text_path(other_prm: TinyModels) -> None:
    with Engine(**other_prm.sources(), device="cpu", max_num_seqs=4) as engine:
        good = generate(engine, GOOD, PARAMS)
        state, bridge = engine.parts.core.state, engine.parts.core._host_steps
        real = bridge._end_step

        def fails(state_: Any, slot: int, *args: Any) -> None:
            if int(state.prompt_length[slot]) == len(BAD) + 1:
                raise ValueError("no such text")
            real(state_, slot, *args)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(bridge, "_end_step", fails)
            results = generate(engine, [*GOOD, BAD], PARAMS)
        assert results[-1].metrics.errors == Errors(bridge=1)
        assert_only_bad_failed(
            engine, results, good, "bringing a step to the PRM failed: ValueError"
        )


@pytest.mark.parametrize("op", ["DRAFT.write", "PRM.score"])
def test_an_op_that_fails_on_the_text_path(other_prm: TinyModels, op: str) -> None:
    with Engine(**other_prm.sources(), device="cpu", max_num_seqs=4) as engine:
        good = generate(engine, GOOD, PARAMS)
        with failing(engine, op, MemoryError("no memory")):
            results = generate(engine, [*GOOD, BAD], PARAMS)
        assert_only_bad_failed(engine, results, good, f"{op} failed: MemoryError: no memory")


Attribute = tuple[type, str]


@pytest.mark.parametrize(
    "attribute",
    [
        (SampleBuilder, "push"), (SampleBuilder, "completion"),
        (SampleBuilder, "prompt_logprobs"), (SampleBuilder, "_end_step"),
        (Detokenizer, "push"), (Detokenizer, "finish"),
    ],
    ids=lambda attribute: f"{attribute[0].__name__}.{attribute[1]}",
)  # fmt: skip
def test_results_that_cannot_be_built(
    engine: Engine,
    attribute: Attribute,
    wanted: list[RequestOutput],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the request that keeps stop strings in its text."""
    owner, name = attribute
    real: Callable[..., Any] = getattr(owner, name)

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = getattr(self, "_params", None)
        bad = params.include_stop_str_in_output if params else self._include_stop
        if bad:
            raise KeyError("no such token")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, fails)
    odd = replace(PARAMS, include_stop_str_in_output=True)
    results = generate(engine, [*GOOD, BAD], [*[PARAMS] * 3, odd])
    assert results[-1].metrics.errors == Errors(result=1)
    assert_only_bad_failed(engine, results, wanted, "building the result failed: KeyError")


def test_a_gpu_that_dies_ends_every_reader(tiny: TinyModels) -> None:
    """As errors of CUDA are: each call fails from then on."""
    with Engine(**tiny.sources(), device="cpu", max_num_seqs=2) as engine:
        core, streams = engine.parts.core, [engine.stream(text, PARAMS) for text in GOOD]
        core.device_type = "cuda"

        def fails(*_: Any, **__: Any) -> None:
            raised(RuntimeError("CUDA error 700"))

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(core.executor, "start", fails)
            patched.setattr(core._slots, "preempt", fails)
            patched.setattr(core._slots, "leave", fails)
            for stream in streams:
                with pytest.raises(EngineDeadError, match="CUDA error 700"):
                    list(stream)
            with pytest.raises(EngineDeadError, match="start a new process"):
                generate(engine, GOOD, PARAMS)
            assert not core.has_work
            engine.close()


@pytest.mark.parametrize("op", ["forward", "write"])
@pytest.mark.parametrize("pass_number", [1, 7, 8])
def test_a_stream_of_tokens_goes_on_after_a_passing_failure(
    tiny: TinyModels, op: str, pass_number: int
) -> None:
    """What was told is not told again: the pieces add up to the text of a run without failure."""
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=30, ignore_eos=True)
    with Engine(target=tiny.target, device="cpu", max_num_seqs=2) as engine:
        [plain, _] = generate(engine, ["ab", "abc"], params)
        count = 0

        def once(call: Call) -> None:
            nonlocal count
            count += call.name == f"TARGET.{op}"
            fails = count == pass_number and call.name == f"TARGET.{op}"
            RUN(replace(call, fn=lambda: raised(MemoryError())) if fails else call)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Call, "run", once)
            other = engine.stream("abc", params)
            *events, last = engine.stream("ab", params)
            other.close()
        assert isinstance(last, FinishedEvent) and count > pass_number
        assert last.output.outputs[0].token_ids == plain.outputs[0].token_ids
        told = [event for event in events if not isinstance(event, FinishedEvent)]
        assert "".join(event.text for event in told) == plain.outputs[0].text
        assert [i for event in told for i in event.token_ids] == [*plain.outputs[0].token_ids]
        assert engine.check_integrity() == []


def test_endings_are_counted(engine: Engine) -> None:
    before = engine.metrics.endings
    generate(engine, GOOD, replace(PARAMS, n=2, max_tokens=3, ignore_eos=True))
    stream = engine.stream("ab", replace(PARAMS, max_tokens=400, ignore_eos=True))
    next(iter(stream))
    engine.abort(stream.request_id)
    generate(engine, GOOD, replace(PARAMS, max_steps=1, policy=Threshold(-1.0), ignore_eos=True))
    found = engine.metrics.endings
    assert found.length + found.steps == before.length + before.steps + 9
    assert found.abort == before.abort + 1 and found.error == before.error
