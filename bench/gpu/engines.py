"""What the engines of tests and benchmarks launch, found by making them without a GPU.

Every one is made as its test or benchmark makes it, on tensors without memory, up to the program of
its loop. All ops of the program then run up to the launches of their kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import ModuleType
from unittest import mock

from bench.gpu import executors
from bench.kernels import overlap
from bench.kernels.early_launch import starting_early
from bench.loop import batching, device_loop, memory
from bench.step import latency
from rsd_engine.engine import build
from rsd_engine.loop.program import calls
from rsd_engine.loop.rsd import Loop, build_program
from rsd_engine.models import loader
from rsd_kernels import ops
from rsd_kernels.aot.memoryless import DEVICE, MEMORY, memoryless_cuda
from rsd_kernels.launch import Launch
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import ConfidenceKind

_LAYERS = 2  # of a model: all are alike


class _Built(BaseException):  # no benchmark takes it for a failure of its own
    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop


def launches(make: Callable[[], object], *, free_memory: int = MEMORY) -> list[Launch]:
    """What the first engine that `make` makes may launch, plain and starting early.

    Args:
        make: makes it on CUDA; it does not return.
        free_memory: bytes that the engine finds free on the device.
    """
    with memoryless_cuda(free_memory) as work:
        loop = _loop_of(make)
        _keep_few_layers(loop)
        for early in (False, True):
            with starting_early(early):
                for call in calls(build_program(loop)):
                    call.fn()
        for rule in BatchingRule:
            schedule, *_ = calls(build_program(replace(loop, rule=rule)))
            schedule.fn()
        _between_launches(loop)
        return work.launches


def _loop_of(make: Callable[[], object]) -> Loop:
    def stop(loop: Loop) -> None:
        raise _Built(loop)

    instead: list[tuple[ModuleType, str, Callable[..., object]]] = [
        (build, "resolve_executor", lambda name, device: "eager"),
        (build, "open_mailbox", lambda state: (state, None)),
        (build, "build_program", stop),
        (loader, "fill", lambda places, stored: None),
    ]
    with ExitStack() as stack:
        for module, name, function in instead:
            stack.enter_context(mock.patch.object(module, name, function))
        try:
            make()
        except _Built as built:
            return built.loop
    raise ValueError(f"{make} made no engine; it must make one on the device cuda")


def _keep_few_layers(loop: Loop) -> None:
    for forward in loop.forwards.values():
        decoder = forward.func.__self__.decoder  # type: ignore[attr-defined]
        decoder.weights = replace(decoder.weights, layers=decoder.weights.layers[:_LAYERS])


def _between_launches(loop: Loop) -> None:
    """What the core asks of the device while no launch runs."""
    state, sizes = loop.state, loop.tokens_per_page
    ops.truncate_kv(state, 0, (0, 0, 0), sizes)
    for slot in (0, state.num_slots - 1):
        ops.end_slot_step(state, slot, sizes)
        ops.end_slot_step(state, slot, sizes, ConfidenceKind.GIVEN)
    if loop.ends:
        ops.retokenise(state, loop.ends.tables, loop.ends.merges, loop.bridge_scratch)
    for targets in range(1, state.num_slots):
        ops.fork(state, loop.pages, 0, range(1, targets + 1), sizes)


def _of_checks(slots: int) -> object:
    """An engine of the tests that compare executors."""
    from tests.engine.executors import checks  # on a GPU if there is one, as there is by now

    with checks.demo_engine("eager", slots) as engine:
        return engine


def _of_executors(*, few_bits: bool) -> object:
    return executors.open_engine(DEVICE, "eager", executors.open_family(few_bits, fill=False))


def _memory(preset: str) -> object:
    return memory.open_engine(memory.parser().parse_args(["--preset", preset]), DEVICE)


ENGINES: dict[str, Callable[[], object]] = {
    "executors": lambda: _of_executors(few_bits=False),
    "executors_few_bits": lambda: _of_executors(few_bits=True),
    "device_loop": lambda: device_loop.main([]),
    "batching": lambda: batching.main([]),
    "step_latency": lambda: latency.main([]),
    "overlap": lambda: overlap.trial(overlap.Options.real()),
    "memory": lambda: _memory("1.5b-7b"),
    **{f"checks of {slots} slots": partial(_of_checks, slots) for slots in (4, 1, 2, 6, 16)},
    "tiny": lambda: _memory("tiny"),
}
"""The engines of `bench.gpu`, by name; `tiny` is for tests."""
