"""Prometheus metrics of a server, in a registry of its own.

Those that mean the same as vLLM's have its names under `rsd:`, and on request under `vllm:` too, so
that its dashboards and its benchmark read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rsd_engine.outputs import GuessCounts, Metrics, RequestOutput, Step
from rsd_engine.server.predictions import Predictions

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_REWARDS = tuple(i / 10 for i in range(1, 11))
_LABELS = ("model_name",)


class ServerMetrics:
    """What is counted, by the model's name.

    Args:
        model: label of every metric.
        vllm_names: whether those that vLLM has too go by its names as well.
    """

    def __init__(self, model: str, *, vllm_names: bool) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._prefixes = ("rsd:", "vllm:") if vllm_names else ("rsd:",)
        self._running = self._shared(Gauge, "num_requests_running", "Samples that hold a slot.")
        self._waiting = self._shared(Gauge, "num_requests_waiting", "Samples that wait for one.")
        self._pages = self._shared(Gauge, "kv_cache_usage_perc", "Share of KV pages in use.")
        self._prompt = self._shared(Counter, "prompt_tokens", "Tokens of prompts.")
        self._asked = self._shared(
            Counter, "prefix_cache_queries", "Tokens of prompts that were looked up in the cache."
        )
        self._found = self._shared(
            Counter, "prefix_cache_hits", "Those of them that the target, or a draft alone, found."
        )
        self._generated = self._shared(Counter, "generation_tokens", "Tokens of outputs.")
        self._ended = self._shared(
            Counter, "request_success", "Ended samples.", extra=("finished_reason",)
        )
        self._first = self._shared(
            Histogram, "time_to_first_token_seconds", "Until the first kept text.", _SECONDS
        )
        self._whole = self._shared(
            Histogram, "e2e_request_latency_seconds", "Until the end.", _SECONDS
        )
        self._drafts = self._shared(
            Counter, "spec_decode_num_drafts", "Scored steps, and passes that verified guesses."
        )
        self._drafted = self._shared(
            Counter, "spec_decode_num_draft_tokens", "Tokens of scored steps, and guesses."
        )
        self._accepted = self._shared(
            Counter, "spec_decode_num_accepted_tokens", "Those of them that are in outputs."
        )
        self._steps = self._own(Counter, "rsd:steps", "Scored steps.", extra=("verdict",))
        self._fates = self._own(
            Counter, "rsd:draft_tokens", "Tokens that the draft wrote.", extra=("fate",)
        )
        self._target = self._own(Counter, "rsd:target_tokens", "Tokens that the target wrote.")
        self._guesses = self._own(
            Counter, "rsd:guesses", "Guesses that the target read.", extra=("source", "fate")
        )
        self._candidates = self._own(
            Counter, "rsd:candidates", "Candidates of steps.", extra=("fate",)
        )
        self._rewards = self._own(Histogram, "rsd:reward", "Rewards of steps.", _REWARDS)
        self._seconds = self._own(Counter, "rsd:role_seconds", "Time of passes.", extra=("role",))
        self._errors = self._own(Counter, "rsd:request_errors", "Samples that failed.")
        self.refused = self._own(
            Counter, "rsd:admission_rejections", "Requests refused with a full queue."
        ).labels(model)

    def text(self) -> bytes:
        """In the format that Prometheus reads."""
        return bytes(generate_latest(self._registry))

    def set_load(self, running: int, waiting: int, page_share: float) -> None:
        """What is going on right now."""
        for gauges, value in (
            (self._running, running), (self._waiting, waiting), (self._pages, page_share),
        ):  # fmt: skip
            self._each(gauges, "set", value)

    def count_first(self, seconds: float) -> None:
        """The first text of a request."""
        self._each(self._first, "observe", seconds)

    def count_result(self, result: RequestOutput, seconds: float) -> None:
        """A request that has ended."""
        self._each(self._prompt, "inc", len(result.prompt_token_ids))
        self._each(self._asked, "inc", len(result.prompt_token_ids))
        self._each(self._found, "inc", result.num_cached_tokens)
        self._each(self._whole, "observe", seconds)
        for output in result.outputs:
            self._each(self._generated, "inc", len(output.token_ids))
            self._each(self._ended, "inc", 1, output.finish_reason)
            if output.finish_reason == "error":
                self._errors.labels(self._model).inc()
            for reward in _rewards(output.steps):
                self._rewards.labels(self._model).observe(reward)
        self._count_work(result.metrics)

    def _count_work(self, metrics: Metrics) -> None:
        kept, discarded = metrics.draft.tokens_generated, metrics.draft.tokens_discarded
        accepted, rejected = metrics.steps_accepted, metrics.steps_rejected
        self._steps.labels(self._model, "accepted").inc(accepted)
        self._steps.labels(self._model, "rejected").inc(rejected)
        self._fates.labels(self._model, "kept").inc(kept)
        self._fates.labels(self._model, "discarded").inc(discarded)
        target = metrics.target
        self._target.labels(self._model).inc(target.tokens_generated + target.tokens_discarded)
        if metrics.candidates.made:
            self._candidates.labels(self._model, "taken").inc(metrics.candidates.taken)
            self._candidates.labels(self._model, "lost").inc(metrics.candidates.lost)
        for role in ("draft", "target", "prm"):
            self._seconds.labels(self._model, role).inc(getattr(metrics, role).seconds)
        for source in fields(metrics.guesses):
            guesses: GuessCounts = getattr(metrics.guesses, source.name)
            if guesses.made:
                self._guesses.labels(self._model, source.name, "kept").inc(guesses.kept)
                wrong = guesses.made - guesses.kept
                self._guesses.labels(self._model, source.name, "discarded").inc(wrong)
        found = Predictions.of([metrics])
        if found.rounds:
            self._each(self._drafts, "inc", found.rounds)
            self._each(self._drafted, "inc", found.proposed)
            self._each(self._accepted, "inc", found.accepted)

    def _shared(
        self,
        kind: Callable[..., Any],
        name: str,
        text: str,
        buckets: Sequence[float] = (),
        extra: Sequence[str] = (),
    ) -> list[Any]:
        return [self._own(kind, prefix + name, text, buckets, extra) for prefix in self._prefixes]

    def _own(
        self,
        kind: Callable[..., Any],
        name: str,
        text: str,
        buckets: Sequence[float] = (),
        extra: Sequence[str] = (),
    ) -> Any:
        more = {"buckets": buckets} if buckets else {}
        return kind(name, text, (*_LABELS, *extra), registry=self._registry, **more)

    def _each(self, metrics: list[Any], method: str, value: float, *labels: str) -> None:
        for metric in metrics:
            getattr(metric.labels(self._model, *labels), method)(value)


def _rewards(steps: Sequence[Step]) -> Iterator[float]:
    """Of every scored step, rejected ones and candidates included; NaN is none."""
    for step in steps:
        rejected = [] if step.rejected is None else [step.rejected.reward]
        for reward in (*(lost.reward for lost in step.candidates), *rejected, step.reward):
            if reward is not None and reward == reward:
                yield reward
