"""Requests of all kinds, from a seed: good ones, each with its result alone, and bad ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from rsd_engine import Engine, Logistic, RequestOutput, SamplingParams, Threshold
from rsd_engine.sampling_params import ModeName
from tests.engine.harness.runs import PROMPTS, decisions

MAX_MODEL_LEN = 192


@dataclass(frozen=True)
class Case:
    """A good request."""

    text: str
    params: SamplingParams
    is_chat: bool

    @property
    def prompt(self) -> Any:
        """What `stream` and `as_completed` take."""
        return [{"role": "user", "content": self.text}] if self.is_chat else self.text

    def run(self, engine: Engine) -> RequestOutput:
        """Its result, by way of `generate` or `chat`."""
        call: Callable[..., list[RequestOutput]] = engine.chat if self.is_chat else engine.generate
        [result] = call(self.prompt, self.params, use_tqdm=False)
        return result


def make_case(rng: Random) -> Case:
    """Any mode, any way to sample, short or long enough to be preempted."""
    modes: list[ModeName] = ["rsd", "rsd", "rsd", "draft", "target"]
    mode = rng.choice(modes)
    params = SamplingParams(
        mode=mode,
        n=rng.choice([1, 1, 1, 1, 3]),
        seed=rng.randrange(2**63),
        temperature=rng.choice([0.0, 0.8, 1.0]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 0, 20]),
        max_tokens=rng.choice([1, 8, 24, 48, 96]),
        max_step_tokens=rng.choice([None, 4, 12]),
        ignore_eos=rng.random() < 0.3,
        stop=rng.choice([None, None, "é", ["\n\n\n\n", "q"]]),
        logprobs=rng.choice([None, None, None, 2]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        policy=rng.choice([None, Threshold(0.3), Threshold(0.7), Logistic(8.0, 0.5)])
        if mode == "rsd"
        else None,
    )
    return Case(rng.choice(PROMPTS), params, rng.random() < 0.3)


BAD: tuple[Callable[[Engine], object], ...] = (
    lambda engine: engine.generate([[]], use_tqdm=False),
    lambda engine: engine.generate([[5, 6], [-1]], use_tqdm=False),
    lambda engine: engine.generate([[10**9]], use_tqdm=False),
    lambda engine: engine.stream("a " * MAX_MODEL_LEN),
    lambda engine: engine.as_completed(["a", 7]),  # type: ignore[arg-type]
    lambda engine: engine.as_completed(["a", "b"], [SamplingParams()]),
    lambda engine: engine.chat([{"role": "user", "content": 3}], use_tqdm=False),
    lambda engine: engine.stream("a", SamplingParams(temperature=float("nan"))),
    lambda engine: engine.stream("a", SamplingParams(max_tokens=2**40, min_tokens=2**41)),
    lambda engine: engine.stream("a", SamplingParams(stop=["x" * 10_000])),
    lambda engine: engine.stream("a", SamplingParams(policy=Threshold(1e300))),
    lambda engine: engine.stream("a", SamplingParams(top_p=1e-60)),
    lambda engine: engine.stream("a", SamplingParams(stop_token_ids=[2**31])),
    lambda engine: engine.stream("a", SamplingParams(n=2**20)),
)  # raise ValueError, and start nothing


def told(result: RequestOutput) -> list[tuple[str, str, list[tuple[object, ...]]]]:
    """All of a result that does not depend on what else runs: reason of its end, text, steps."""
    return [
        (output.finish_reason, output.text, decisions(result, i))
        for i, output in enumerate(result.outputs)
    ]
