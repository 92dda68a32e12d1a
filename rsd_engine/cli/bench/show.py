"""Shows the numbers of a benchmark, laid out as vLLM's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rsd_engine.client.load import Load
from rsd_engine.client.summary import Spread, Summary

_WIDTH = 50
_TIMES = (
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
)
_SWEEP = (
    "rate", "at once", "ok", "failed", "req/s", "tok/s", "TTFT ms", "its P99", "TPOT ms", "E2EL ms",
)  # fmt: skip

Value = int | float | None


def table_lines(summary: Summary) -> Iterator[str]:
    """The lines of one run."""
    yield " Serving Benchmark Result ".center(_WIDTH, "=")
    yield from _totals(summary)
    for name, short, title in _TIMES:
        spread: Spread | None = getattr(summary, name)
        if spread is None:
            continue
        yield title.center(_WIDTH, "-")
        yield _row(f"Mean {short} (ms)", spread.mean)
        yield _row(f"Median {short} (ms)", spread.median)
        yield _row(f"P99 {short} (ms)", spread.p99)
        if name == "itl":
            yield _row("Mean tokens per chunk", tokens_per_chunk(summary))
    yield from _speculation(summary)
    yield "=" * _WIDTH


def tokens_per_chunk(summary: Summary) -> float | None:
    """How many tokens come at once; ITL is the time between two chunks."""
    if not summary.chunks or summary.output_tokens is None:
        return None
    return summary.output_tokens / summary.chunks


def sweep_lines(summaries: Sequence[Summary]) -> Iterator[str]:
    """All runs of a sweep, a line each below their titles."""
    yield "".join(f"{title:>8}" for title in _SWEEP)
    for s in summaries:
        counts = [s.load.max_concurrency, s.completed, s.failed]
        speeds = [s.completed / s.duration, _per_second(s.output_tokens, s)]
        p99 = None if s.ttft is None else s.ttft.p99
        times = [_mean(s.ttft), p99, _mean(s.tpot), _mean(s.e2el)]
        cells = [f"{s.load.request_rate:g}", *(_text(v, 1) for v in (*counts, *speeds, *times))]
        yield "".join(f"{cell:>8}" for cell in cells)


def load_text(load: Load) -> str:
    """How a server is pressed, in a few words."""
    rate = "all at once" if math.isinf(load.request_rate) else f"{load.request_rate:g} a second"
    limit = "" if load.max_concurrency is None else f", at most {load.max_concurrency} running"
    return rate + limit


def _totals(summary: Summary) -> Iterator[str]:
    duration = summary.duration
    given, written = summary.input_tokens, summary.output_tokens
    yield _row("Successful requests", summary.completed)
    yield _row("Failed requests", summary.failed)
    if summary.load.max_concurrency is not None:
        yield _row("Maximum request concurrency", summary.load.max_concurrency)
    if not math.isinf(summary.load.request_rate):
        yield _row("Request rate configured (RPS)", summary.load.request_rate)
    yield _row("Benchmark duration (s)", duration)
    yield _row("Total input tokens", given)
    yield _row("Total generated tokens", written)
    yield _row("Request throughput (req/s)", summary.completed / duration)
    both = None if given is None or written is None else given + written
    yield _row("Output token throughput (tok/s)", _per_second(written, summary))
    yield _row("Total token throughput (tok/s)", _per_second(both, summary))


def _speculation(summary: Summary) -> Iterator[str]:
    found = summary.speculation
    if found is None or not found.drafted:
        return
    yield "Speculative Decoding".center(_WIDTH, "-")
    yield _row("Acceptance rate (%)", 100 * found.accepted / found.drafted)
    if found.rounds:
        yield _row("Accepted tokens per draft", found.accepted / found.rounds)
        yield _row("Drafts", found.rounds)
    yield _row("Draft tokens", found.drafted)
    yield _row("Accepted tokens", found.accepted)
    if summary.output_tokens:
        yield _row("Share of output by the draft (%)", 100 * found.accepted / summary.output_tokens)


def _row(name: str, value: Value) -> str:
    return f"{name + ':':<40} {_text(value)}"


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else spread.mean


def _per_second(count: int | None, summary: Summary) -> float | None:
    return None if count is None else count / summary.duration


def _text(value: Value, decimals: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
