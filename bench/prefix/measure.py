"""The gate, then every way to answer a scene in alternation; and what the cache costs in vain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from bench.compare.rsd_part import Metered
from bench.lib.timing import Mismatch, Timing, alternate, require_same_tokens
from bench.prefix.reusing import Reusing
from bench.prefix.scenes import Scene, play
from rsd_engine import Engine, Metrics, RequestOutput
from rsd_engine.sampling_params import ModeName

ON, OFF, APART = "cache on", "cache off", "cache off, samples apart"
TRANSFORMERS = "transformers, its cache kept"


@dataclass(frozen=True)
class Engines:
    """The same engine twice."""

    on: Engine
    off: Engine


@dataclass(frozen=True)
class Found:
    """One way to answer a scene.

    Attributes:
        cpu_seconds: processor time of a run, the median; a busy machine changes it little.
        metrics: of all requests of a run; None for transformers.
    """

    scene: str
    mode: ModeName
    way: str
    timing: Timing
    cpu_seconds: float
    metrics: Metrics | None

    def times_as_fast_as(self, other: Found) -> float:
        return other.timing.median / self.timing.median


def measure(
    engines: Engines, reusing: Reusing, scene: Scene, mode: ModeName, runs: int
) -> list[Found]:
    """All ways; transformers, which has one model, only beside mode "target".

    Raises:
        Mismatch: two ways give different results, or a token was read more often than it should.
    """
    ways: dict[str, Callable[[], object]] = {
        ON: partial(play, engines.on, scene, mode),
        OFF: partial(play, engines.off, scene, mode),
    }
    results = {ON: play(engines.on, scene, mode), OFF: play(engines.off, scene, mode)}
    what = f"{scene.name}, mode {mode}"
    _require_same(results[ON], results[OFF], what)
    wanted = _tokens(results[OFF])
    if scene.samples > 1:
        ways[APART] = partial(play, engines.off, scene.apart(), mode)
        results[APART] = play(engines.off, scene.apart(), mode)
        require_same_tokens(_tokens(results[APART]), wanted, f"{what}, {APART}")
    if mode == "target":
        ways[TRANSFORMERS] = partial(reusing.answer, scene)
        require_same_tokens(wanted, reusing.answer(scene), f"{what}, {TRANSFORMERS}")
    # What ran for the gate was the warm-up.
    metered = {name: Metered(way) for name, way in ways.items()}
    timings = alternate(metered, runs, warmup=0)
    return [
        Found(
            scene.name, mode, name, timings[name], median(metered[name].cpu_seconds),
            summed(results[name]) if name in results else None,
        )
        for name in ways
    ]  # fmt: skip


@dataclass(frozen=True)
class Overhead:
    """What looking for prompts costs where none is found.

    Attributes:
        on, off: seconds of a pass.
        share: what the cache adds to the processor time of a pass, the median of all pairs of runs.
    """

    on: Timing
    off: Timing
    share: float


def overhead(engines: Engines, scene: Scene, runs: int) -> Overhead:
    """Of prompts that have nothing in common, written by the target alone.

    Raises:
        Mismatch: the two engines differ, or something was found all the same.
    """
    results, without = (play(engine, scene, "target") for engine in (engines.on, engines.off))
    _require_same(results, without, scene.name)
    found = cached(summed(results))
    if found:
        raise Mismatch(f"{scene.name}: {found} tokens were found in the cache")
    passes = max(result.metrics.target.passes for result in results)
    ways = {name: Metered(partial(play, engine, scene, "target"))
            for name, engine in ((ON, engines.on), (OFF, engines.off))}  # fmt: skip
    timings = alternate(ways, runs, warmup=0)
    on, off = (Timing(tuple(s / passes for s in timings[name].seconds)) for name in (ON, OFF))
    pairs = zip(ways[ON].cpu_seconds, ways[OFF].cpu_seconds, strict=True)
    return Overhead(on, off, median(one / other for one, other in pairs) - 1)


def summed(results: Sequence[RequestOutput]) -> Metrics:
    return sum((result.metrics for result in results), start=Metrics())


def read(metrics: Metrics) -> dict[str, int]:
    """Tokens that each model read."""
    roles = {"draft": metrics.draft, "target": metrics.target, "prm": metrics.prm}
    return {name: role.tokens_read for name, role in roles.items()}


def cached(metrics: Metrics) -> int:
    """Tokens that were found in the cache, by all models."""
    return sum(role.cached_tokens for role in (metrics.draft, metrics.target, metrics.prm))


def _tokens(results: Sequence[RequestOutput]) -> list[tuple[int, ...]]:
    return [output.token_ids for result in results for output in result.outputs]


def _require_same(on: Sequence[RequestOutput], off: Sequence[RequestOutput], what: str) -> None:
    """A cache changes nothing: tokens, decisions and rewards are the same to the bit."""
    require_same_tokens(_tokens(on), _tokens(off), what)
    for one, other in zip(on, off, strict=True):
        if repr(one.outputs) != repr(other.outputs):
            raise Mismatch(f"{what}: the steps of prompt {one.prompt_token_ids[:8]}... differ")
