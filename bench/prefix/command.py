"""Prompts that begin alike, on the demo family: this engine with and without its prefix cache.

    python -m bench.prefix

Three scenes: samples of one prompt, a chat, and problems that all begin with the same worked
examples. The target alone and RSD must give the same results with the cache, without it and, where
samples share their prompt, as requests of their own; and transformers, which keeps its own cache
from call to call, must write the target's tokens. Then all of them run in alternation, greedily and
in fp32. Last comes what the cache costs where it finds nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from bench.lib import report
from bench.lib.options import command_parser, positive
from bench.prefix.measure import (
    APART,
    OFF,
    ON,
    TRANSFORMERS,
    Engines,
    Found,
    Overhead,
    cached,
    measure,
    overhead,
    read,
)
from bench.prefix.reusing import Reusing
from bench.prefix.scenes import (
    Scene,
    chat_scene,
    few_shot_scene,
    sample_scene,
    unrelated_scene,
)
from rsd_engine import Engine
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.sampling_params import ModeName

HEADERS = ("scene", "mode", "way", "seconds", "min", "max", "CPU s", "times as fast",
           "read: draft", "target", "PRM", "cached")  # fmt: skip
SLOTS = 16
MODES: tuple[ModeName, ...] = ("target", "rsd")
QUICK = {"runs": 1, "samples": 3, "turns": 3, "problems": 4, "shots": 2, "tokens": 16,
         "decode_tokens": 20, "decode_runs": 1}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    models: dict[str, Any] = {role: checkpoint_dir(role) for role in ROLES}
    common: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_num_seqs": SLOTS}
    reusing = Reusing.load(models["target"], SLOTS)
    with (
        Engine(**models, **common) as on,
        Engine(**models, **common, enable_prefix_caching=False) as off,
    ):
        engines = Engines(on, off)
        found: list[list[Found]] = []
        for mode in MODES:
            for scene in _scenes(off, mode, options):
                found.append(measure(engines, reusing, scene, mode, options.runs))
        alone = unrelated_scene(off, SLOTS, options.decode_tokens)
        cost = overhead(engines, alone, options.decode_runs)
    rows = [row for ways in found for row in rows_of(ways)]
    print(report.format_table(HEADERS, rows))
    print(
        f"where nothing is found: {1e3 * cost.on.median:.3f} ms a pass with the cache, "
        f"{1e3 * cost.off.median:.3f} without; {cost.share:+.1%} of processor time"
    )
    report.print_json(summary(found, cost) | {"runs": options.runs})
    return 0


def rows_of(found: Sequence[Found]) -> list[list[str]]:
    """One row a way, under HEADERS."""
    base = baseline(found)
    return [
        [
            f.scene, f.mode, f.way, f"{f.timing.median:.3f}", f"{min(f.timing.seconds):.3f}",
            f"{max(f.timing.seconds):.3f}", f"{f.cpu_seconds:.3f}",
            f"{f.times_as_fast_as(base):.2f}", *_reads(f),
        ]
        for f in found
    ]  # fmt: skip


def baseline(found: Sequence[Found]) -> Found:
    """The way that shares nothing."""
    by_way = {f.way: f for f in found}
    return by_way.get(APART, by_way[OFF])


def summary(found: Sequence[Sequence[Found]], cost: Overhead) -> dict[str, Any]:
    """For the line of JSON: by scene and mode.

    `ratio` is the speed with the cache against the way that shares nothing; `vs_transformers`
    against transformers with its cache kept.
    """
    scenes: dict[str, Any] = {}
    for ways in found:
        by_way = {f.way: f for f in ways}
        figures = {"ratio": by_way[ON].times_as_fast_as(baseline(ways))}
        if TRANSFORMERS in by_way:
            figures["vs_transformers"] = by_way[ON].times_as_fast_as(by_way[TRANSFORMERS])
        of_scene = scenes.setdefault(ways[0].scene, {})
        of_scene[ways[0].mode] = figures | {"ways": {f.way: _figures(f) for f in ways}}
    return {
        "bench": "prefix",
        "scenes": scenes,
        "overhead": {
            "share": cost.share,
            "seconds_a_pass": {ON: list(cost.on.seconds), OFF: list(cost.off.seconds)},
        },
    }


def _figures(found: Found) -> dict[str, Any]:
    figures = {"seconds": list(found.timing.seconds), "cpu_seconds": found.cpu_seconds}
    if found.metrics is None:
        return figures
    return figures | {"read": read(found.metrics), "cached": cached(found.metrics)}


def _reads(found: Found) -> list[str]:
    if found.metrics is None:
        return [""] * 4
    return [str(count) for count in (*read(found.metrics).values(), cached(found.metrics))]


def _scenes(engine: Engine, mode: ModeName, options: argparse.Namespace) -> list[Scene]:
    return [
        sample_scene(engine, options.samples, options.shots, options.tokens),
        chat_scene(engine, mode, options.turns, options.tokens),
        few_shot_scene(engine, options.problems, options.shots, options.tokens),
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**QUICK)
        return parser.parse_args(arguments)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("prefix", __doc__)
    parser.add_argument("--runs", type=positive, default=3, help="of each way, in turn")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--samples", type=positive, default=16, help="of one prompt")
    parser.add_argument("--turns", type=positive, default=10, help="of the chat")
    parser.add_argument("--problems", type=positive, default=200, help="that begin alike")
    parser.add_argument("--shots", type=positive, default=4, help="worked examples before each")
    parser.add_argument("--tokens", type=positive, default=44, help="most of an answer")
    parser.add_argument(
        "--decode-tokens", type=positive, default=200, help="of each unrelated prompt"
    )
    parser.add_argument("--decode-runs", type=positive, default=21, help="of unrelated prompts")
    parser.add_argument("--quick", action="store_true", help="small sizes where none are given")
    return parser
