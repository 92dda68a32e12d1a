"""What the server costs: `rsd serve` beside `Engine.generate` on the same requests.

    python -m bench.server

A process of `rsd serve` and an engine in this process have the same models and slots. Both solve
the same word problems greedily, and must write the same texts. Then they take turns: all problems
in one call of `Engine.generate`, and over HTTP in a request each, whole or streamed, with twice as
many open as there are slots, so that one always waits for a slot. While one works, the other rests;
the client shares this process with the resting engine, and needs a core of its own. On a machine
that others use, compare processor time, which is that of the working engine's process alone.

Last comes the time until the first kept step is at the client, one request at a time and with all
slots busy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch

from bench.lib import report
from bench.lib.options import command_parser, positive
from bench.lib.timing import Mismatch, Timing, alternate
from bench.server.client import ask_all
from bench.server.process import serving
from rsd_engine import Engine, SamplingParams
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.demo.problems import generate

BAR = 0.9  # of the throughput of `Engine.generate`
DIRECT, WHOLE, STREAMED = "Engine.generate", "server, whole", "server, streamed"
_MAX_TOKENS = 256
_PERCENTILES = (50, 99)

Way = Callable[[], list[str]]  # to all texts


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    prompts = [problem.question for problem in generate(0, "test", given.requests)]
    fields = {"max_tokens": _MAX_TOKENS, "temperature": 0.0, "rsd": {"mode": given.mode}}
    with serving(slots=given.slots, queue=given.slots, threads=given.threads) as server:
        ask = partial(ask_all, server.url, prompts, fields)
        with Engine(
            *map(checkpoint_dir, ROLES), max_num_seqs=given.slots, enable_prefix_caching=False
        ) as engine:
            params = SamplingParams(temperature=0.0, max_tokens=_MAX_TOKENS, mode=given.mode)
            ways: dict[str, Way] = {
                DIRECT: lambda: [
                    result.outputs[0].text
                    for result in engine.generate(prompts, params, use_tqdm=False)
                ],
                WHOLE: lambda: [a.text for a in ask(at_once=2 * given.slots, stream=False)],
                STREAMED: lambda: [a.text for a in ask(at_once=2 * given.slots, stream=True)],
            }
            check_same(ways)
            times, processor = measure(ways, server.processor_seconds, given.runs)
        firsts = {
            n: [answer.first for answer in ask(at_once=n, stream=True)] for n in (1, given.slots)
        }
    print(_table(times, processor, given.requests))
    print()
    print(_table_of_firsts(firsts))
    report.print_json(
        {
            "bench": "server", "mode": given.mode, "requests": given.requests,
            "slots": given.slots, "bar": BAR,
            "ways": {
                name: {
                    "seconds": list(time.seconds), "processor_seconds": list(processor[name]),
                    "ratio": ratio(times[DIRECT].seconds, time.seconds),
                    "processor_ratio": ratio(processor[DIRECT], processor[name]),
                }
                for name, time in times.items()
            },
            "first_step_seconds": {
                str(n): {f"p{p}": percentile(found, p) for p in _PERCENTILES}
                for n, found in firsts.items()
            },
        }
    )  # fmt: skip
    return 0


def check_same(ways: dict[str, Way]) -> None:
    """Raises Mismatch unless every way gives the texts of the first one."""
    (first, way), *others = ways.items()
    wanted = way()
    for name, other in others:
        for index, (found, text) in enumerate(zip(other(), wanted, strict=True)):
            if found != text:
                raise Mismatch(f"request {index}: {name} wrote {found!r}, {first} {text!r}")


def measure(
    ways: dict[str, Way], server_seconds: Callable[[], float], runs: int
) -> tuple[dict[str, Timing], dict[str, list[float]]]:
    """Wall time, and processor time of the process whose engine works, of every run."""
    processor: defaultdict[str, list[float]] = defaultdict(list)

    def timed(name: str) -> None:
        clock = time.process_time if name == DIRECT else server_seconds
        before = clock()
        ways[name]()
        processor[name].append(clock() - before)

    times = alternate({name: partial(timed, name) for name in ways}, runs, warmup=0)
    return times, processor


def ratio(direct: Sequence[float], other: Sequence[float]) -> float:
    """The throughput of another way, as a share: the median over neighbouring runs."""
    return statistics.median(mine / its for mine, its in zip(direct, other, strict=True))


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def _table(times: dict[str, Timing], processor: dict[str, list[float]], count: int) -> str:
    rows = [
        [
            name, f"{time.median:.2f}", f"{time.spread:.0%}", f"{count / time.median:.1f}",
            f"{ratio(times[DIRECT].seconds, time.seconds):.2f}",
            f"{statistics.median(processor[name]):.2f}",
            f"{ratio(processor[DIRECT], processor[name]):.2f}",
        ]
        for name, time in times.items()
    ]  # fmt: skip
    headers = (
        f"{count} requests", "seconds", "spread", "requests per second", "throughput, ratio",
        "processor seconds", "ratio of these",
    )  # fmt: skip
    return report.format_table(headers, rows)


def _table_of_firsts(firsts: dict[int, list[float]]) -> str:
    rows = [
        [f"{n} at a time", *(f"{1e3 * percentile(found, p):.1f}" for p in _PERCENTILES)]
        for n, found in firsts.items()
    ]
    return report.format_table(
        ("until the first kept step", *(f"p{p}, ms" for p in _PERCENTILES)), rows
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("server", __doc__)
    parser.add_argument("--requests", type=positive, default=256)
    parser.add_argument("--slots", type=positive, default=16)
    parser.add_argument("--runs", type=positive, default=5, help="of each way, in turn")
    parser.add_argument("--mode", choices=("rsd", "target", "draft"), default="rsd")
    parser.add_argument(
        "--threads", type=positive, default=1, help="of each engine; the client needs a core too"
    )
    return parser
