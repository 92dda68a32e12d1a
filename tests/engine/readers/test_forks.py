"""What a forked child may do with an engine of its parent: learn that it cannot use it."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from rsd_engine import Engine, SamplingParams
from rsd_engine.engine.stream import Stream
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from tests.engine.harness.runs import all_pages_free, decisions, generate
from tests.engine.harness.scripted import replaced
from tests.tiny_models import TinyModels

# The tests fork on purpose, with threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=30)
CHAT = [{"role": "user", "content": "1 + 1?"}]

_handles: list[object] = []  # what children find in the memory that they inherit


def said_by_a_child(act: Callable[[], object]) -> str:
    """What `act` raises in a forked child, or "" if nothing; a child that hangs is killed."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            act()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    clock = threading.Timer(20.0, os.kill, (child, 9))
    clock.start()
    with open(reader, encoding="utf-8") as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    clock.cancel()
    assert status == 0, "the child hung"
    return text


def refused(text: str) -> bool:
    return (
        text.startswith(f"RuntimeError: this engine belongs to process {os.getpid()}, and process ")
        and "make an engine in each process" in text
        and "multiprocessing.get_context('spawn')" in text
    )


USES: dict[str, Callable[[Engine, Stream, Iterator[object]], object]] = {
    "generate": lambda engine, stream, completed: engine.generate("a", use_tqdm=False),
    "chat": lambda engine, stream, completed: engine.chat(CHAT, use_tqdm=False),
    "stream": lambda engine, stream, completed: engine.stream("a"),
    "as_completed": lambda engine, stream, completed: engine.as_completed(["a"]),
    "abort": lambda engine, stream, completed: engine.abort("0"),
    "metrics": lambda engine, stream, completed: engine.metrics,
    "memory": lambda engine, stream, completed: engine.memory,
    "a stream": lambda engine, stream, completed: list(stream),
    "as_completed of the parent": lambda engine, stream, completed: next(completed),
}


@pytest.fixture
def running(engine: Engine) -> Iterator[tuple[Engine, Stream, Iterator[object]]]:
    """An engine whose core runs in other threads, one of which holds its locks."""
    forward, begun, release = (
        engine.parts.core.loop.forwards[Role.DRAFT], threading.Event(), threading.Event(),
    )  # fmt: skip

    def held(batch: RowBatch) -> None:
        begun.set()
        assert release.wait(timeout=60)
        forward(batch)

    stream, completed = engine.stream("a", PARAMS), engine.as_completed(["b"], PARAMS)
    with replaced(engine, Role.DRAFT, held):
        other = threading.Thread(target=generate, args=(engine, ["c"], PARAMS))
        other.start()
        assert begun.wait(timeout=60)
        yield engine, stream, completed
        release.set()
        other.join(timeout=60)
    assert not other.is_alive()
    list(completed)  # nobody else may be left when the test ends
    stream.close()


def test_no_handle_can_be_used_in_a_fork(
    running: tuple[Engine, Stream, Iterator[object]],
) -> None:
    """Neither idle nor while threads run, whose locks nobody will ever release in the child."""
    for name, use in USES.items():
        text = said_by_a_child(lambda use=use: use(*running))  # type: ignore[misc]
        assert refused(text), f"{name}: {text}"


def test_a_fork_cannot_make_an_engine(engine: Engine, tiny: TinyModels) -> None:
    text = said_by_a_child(lambda: Engine(**tiny.sources(), device="cpu"))
    assert text.startswith("RuntimeError: process ") and f"process {os.getpid()}" in text
    assert "multiprocessing.get_context('spawn')" in text


def test_what_a_child_throws_away_stays_with_the_parent(engine: Engine) -> None:
    """Its copies of handles are closed, left and collected; requests and templates go on."""
    [wanted] = generate(engine, ["a"], PARAMS)
    [answer] = engine.chat(CHAT, PARAMS, use_tqdm=False)
    closed, read = engine.stream("a", PARAMS), iter(engine.stream("b", PARAMS))
    completed = engine.as_completed(["a"], PARAMS)
    next(read)

    def throw_away() -> None:
        nonlocal read, completed
        closed.close()
        del read, completed
        engine.close()
        gc.collect()

    assert said_by_a_child(throw_away) == ""
    [(_, found)] = completed
    list(closed)
    assert closed.output is not None
    assert decisions(found) == decisions(closed.output) == decisions(wanted)
    [again] = engine.chat(CHAT, PARAMS, use_tqdm=False)
    assert decisions(again) == decisions(answer)
    del read
    assert all_pages_free(engine)


def test_a_child_that_ends_as_programs_do(engine: Engine) -> None:
    """Its exit runs finalizers and handlers of the copies, and neither hangs nor harms."""
    stream = engine.stream("a", PARAMS)
    child = multiprocessing.get_context("fork").Process(target=gc.collect)
    child.start()
    child.join(timeout=30)
    assert child.exitcode == 0
    [wanted] = generate(engine, ["a"], PARAMS)
    list(stream)
    assert stream.output is not None and decisions(stream.output) == decisions(wanted)


def _generate_in_a_pool(prompt: str) -> object:
    [engine] = _handles
    assert isinstance(engine, Engine)
    return engine.generate(prompt, use_tqdm=False)


def test_a_pool_of_forked_processes(engine: Engine) -> None:
    _handles.append(engine)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            error = pool.submit(_generate_in_a_pool, "a").exception(timeout=30)
            assert refused(f"{type(error).__name__}: {error}")
            error = pool.submit(engine.generate, "a").exception(timeout=30)
            assert "an Engine cannot be copied, pickled or sent" in str(error)
            assert generate(engine, ["a"], PARAMS)
    finally:
        _handles.clear()


@pytest.mark.parametrize("sent", [pickle.dumps, copy.copy, copy.deepcopy])
def test_handles_cannot_be_sent(engine: Engine, sent: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match=r"an Engine cannot be copied.*get_context\('spawn'\)"):
        sent(engine)
    with engine.stream("a", PARAMS) as stream, pytest.raises(TypeError, match="a Stream cannot"):
        sent(stream)
