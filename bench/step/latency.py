"""The time of a step by its parts, beside what the hardware allows.

    python -m bench.step_latency --preset 1.5b-7b --slots 1 4 16 64 --contexts 1024 4096 16384
    python -m bench.step_latency --dry-run

Every slot writes steps of one length after a context of one length. Five scenes alternate: draft
alone, target alone, RSD that keeps every step, RSD that rejects every step, and RSD that keeps a
share of them, `--acceptance`. The PRM scores every step, but a constant policy decides, so that the
share is known. Before anything is timed, every executor must write and decide exactly as the first
one, from real prompts.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.lib import report
from bench.lib.play import Played, fill_pages, play
from bench.lib.random_models import TRIPLES
from bench.lib.rates import measure_device
from bench.lib.scenes import Scene
from bench.lib.timing import Mismatch, Timing
from bench.step.options import GATE_SLOTS, Options, parse
from bench.step.points import HEADERS, StepPoint
from bench.step.roofline import KEEP, MIXED, REJECT, SCENES, step_roofline, triple_of
from rsd_engine import Engine
from rsd_engine.demo import checkpoint_dir
from rsd_engine.models.config import DTYPES
from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.rounds import Setting
from rsd_kernels.state.enums import Role


@dataclass(frozen=True)
class Skipped:
    """A point that was not measured, and why."""

    executor: str
    slots: int
    context: int
    why: str


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, __doc__)
    points: list[StepPoint] = []
    skipped: list[Skipped] = []
    rates: Device | None = None
    decided: dict[str, Any] = {}
    start = time.monotonic()
    for number, executor in enumerate(options.executors, start=1):
        deadline = start + options.budget * number / len(options.executors)
        with build_engine(options, executor) as engine:
            if rates is None:
                rates = _measure_rates(engine, options)
            pass_gate(engine, options, executor, decided)
            fill_pages(engine)
            for found in _measure(engine, options, rates, deadline):
                if isinstance(found, StepPoint):
                    points.append(found)
                else:
                    skipped.append(found)
        _free_memory()
    assert rates is not None
    print(report.format_table(HEADERS, [point.row() for point in points]))
    for entry in skipped:
        print(f"skipped {entry.executor}, {entry.slots} slots, {entry.context}: {entry.why}")
    report.print_json(_summary(options, rates, points, skipped))
    return 0


def build_engine(options: Options, executor: str) -> Engine:
    """An engine that is large enough for every scene."""
    scenes = [options.scene(MIXED, s, c) for s in options.slots for c in options.contexts]
    model_len = max(scene.model_len for scene in (*scenes, options.gate))
    arguments: dict[str, Any] = {
        "device": options.device,
        "dtype": options.dtype,
        "executor": executor,
        "step_delimiters": None,
        "enable_prefix_caching": False,
        "max_num_seqs": max(*options.slots, GATE_SLOTS),
        "max_model_len": model_len,
    }
    if options.preset == "demo":
        return Engine(
            checkpoint_dir("draft"), checkpoint_dir("target"), checkpoint_dir("prm"), **arguments
        )
    dtype = DTYPES.get(options.dtype)
    models = TRIPLES[options.preset].checkpoints(options.device, dtype, 2 * model_len + 128)
    return Engine(*models, **arguments)


def pass_gate(engine: Engine, options: Options, executor: str, decided: dict[str, Any]) -> None:
    """Two runs with real prompts must decide alike, and as the first executor did.

    Args:
        decided: decisions by executor; this one's are added.

    Raises:
        Mismatch: they do not.
    """
    found, again = (play(engine, options.gate, real_prompts=True).decisions for _ in range(2))
    decided[executor] = found
    first = options.executors[0]
    for other, what in ((again, "in a second run"), (decided[first], f"than {first}")):
        if other != found:
            raise Mismatch(f"{executor} decides otherwise {what}")
    print(f"gate passed: {executor} decides as {first} does, twice")


def _measure_rates(engine: Engine, options: Options) -> Device:
    """The rates of the device; prints them and the least times that follow."""
    dtype = engine.parts.models.main.model.dtype
    rates = measure_device(options.device, dtype, quick=options.preset == "tiny")
    print(
        f"measured: {rates.bandwidth / 1e9:.1f} GB/s read, {rates.flops / 1e12:.3g} TFLOP/s of "
        f"{str(dtype).removeprefix('torch.')} products"
    )
    for context in options.contexts:
        for slots in options.slots:
            least = _roofline(engine, options, rates, slots, context, options.acceptance)
            listed = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in least.items())
            print(f"least ms per step, {slots} slots, {context} tokens: {listed}")
    return rates


def _measure(
    engine: Engine, options: Options, rates: Device, deadline: float
) -> Iterator[StepPoint | Skipped]:
    """Short contexts and few slots first; the first point is measured whatever the budget."""
    executor, is_first = engine.parts.core.executor.name, True
    for context in options.contexts:
        for slots in options.slots:
            if time.monotonic() > deadline and not is_first:
                yield Skipped(executor, slots, context, "the time is used up")
                continue
            is_first = False
            try:
                yield _point(engine, options, executor, rates, slots, context)
            except MemoryError as error:
                yield Skipped(executor, slots, context, str(error))


def _free_memory() -> None:
    """Frees what the last engine held, for the next one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _point(
    engine: Engine, options: Options, executor: str, rates: Device, slots: int, context: int
) -> StepPoint:
    """Runs all scenes in alternation, after an untimed one that uses every role.

    Raises:
        MemoryError: the pool cannot hold them.
    """
    scenes = {name: options.scene(name, slots, context) for name in SCENES}
    runs: dict[str, list[Played]] = {name: [] for name in SCENES}
    play(engine, scenes[REJECT])
    for _ in range(options.runs):
        for name, scene in scenes.items():
            played = play(engine, scene)
            _check_steps(played, scene)
            runs[name].append(played)
    mixed = runs[MIXED][0]
    acceptance = mixed.kept / (mixed.kept + mixed.rejected)
    return StepPoint(
        executor=executor,
        slots=slots,
        context=context,
        step_tokens=options.step_tokens,
        scenes={
            name: Timing(tuple(one.seconds / options.steps for one in played))
            for name, played in runs.items()
        },
        score=Timing(tuple(one.role_seconds[Role.PRM] / options.steps for one in runs[KEEP])),
        acceptance=acceptance,
        least=_roofline(engine, options, rates, slots, context, acceptance),
    )


def _check_steps(played: Played, scene: Scene) -> None:
    """Steps of another length would be other work.

    Raises:
        Mismatch: a step is shorter or longer than the scene asks for.
    """
    lengths = {len(tokens) for steps in played.decisions.values() for *_, tokens in steps}
    if lengths != {scene.step_tokens}:
        raise Mismatch(f"steps of {sorted(lengths)} tokens, expected {scene.step_tokens}")


def _roofline(
    engine: Engine, options: Options, rates: Device, slots: int, context: int, acceptance: float
) -> dict[str, float]:
    triple = triple_of(engine.parts.models.models)
    mean = context + options.steps * options.step_tokens // 2
    return step_roofline(triple, Setting(rates, slots, mean, options.step_tokens), acceptance)


def _summary(
    options: Options, rates: Device, points: list[StepPoint], skipped: list[Skipped]
) -> dict[str, Any]:
    return {
        "bench": "step_latency",
        "preset": options.preset,
        "on": str(options.device),
        "dtype": options.dtype,
        "step_tokens": options.step_tokens,
        "steps": options.steps,
        "runs": options.runs,
        "asked_acceptance": options.acceptance,
        "measured": {"bandwidth": rates.bandwidth, "flops": rates.flops},
        "points": [point.to_dict() for point in points],
        "skipped": [vars(entry) for entry in skipped],
    }
