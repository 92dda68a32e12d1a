"""Requests of all kinds, from a seed, each as a body and as what the engine is asked in its place.

Both forms are written here, so that what the server makes of the body is not taken from itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from rsd_engine import Constant, Engine, Logistic, RequestOutput, SamplingParams, Threshold
from rsd_engine.demo.problems import generate
from rsd_engine.sampling_params import ModeName
from rsd_engine.steps.policies import Policy

Told = list[tuple[str, str]]  # text and reason of the end of each choice

QUESTIONS = [problem.question for problem in generate(11, "test", 12)]
POLICIES: Sequence[tuple[dict[str, Any], Policy | None]] = (
    ({}, None),
    ({"threshold": 0.3}, Threshold(0.3)),
    ({"threshold": 0.95}, Threshold(0.95)),
    ({"policy": "logistic:8:0.5"}, Logistic(8.0, 0.5)),
    ({"policy": "constant:0.5"}, Constant(0.5)),
)


@dataclass(frozen=True)
class Case:
    """A good request."""

    path: str
    body: dict[str, Any]
    prompts: Sequence[str]
    params: SamplingParams

    def alone(self, engine: Engine) -> Told:
        """What the engine says when nothing else runs."""
        return [told for prompt in self.prompts for told in _told(self._run(engine, prompt))]

    def _run(self, engine: Engine, prompt: str) -> RequestOutput:
        if self.path.startswith("/v1/chat"):
            messages = [{"role": "user", "content": prompt}]
            [result] = engine.chat(messages, self.params, use_tqdm=False)
        else:
            [result] = engine.generate(prompt, self.params, use_tqdm=False)
        return result


def make_case(rng: Random) -> Case:
    """A chat or a completion, in any mode, under any policy, of one or several outputs."""
    modes: list[ModeName] = ["rsd", "rsd", "rsd", "target", "draft"]
    mode = rng.choice(modes)
    own, policy = rng.choice(POLICIES) if mode == "rsd" else ({}, None)
    fields: dict[str, Any] = {
        "n": rng.choice([1, 1, 1, 3]),
        "seed": rng.randrange(2**63),
        "temperature": rng.choice([0.0, 0.8, 1.0]),
        "top_p": rng.choice([1.0, 0.9]),
        "max_tokens": rng.choice([1, 8, 24, 64]),
        "ignore_eos": rng.random() < 0.2,
        "stop": rng.choice([None, None, " now", ["boxed", " more"]]),
    }
    params = SamplingParams(mode=mode, policy=policy, **fields)
    body = {**fields, "rsd": {"mode": mode, **own}}
    if rng.random() < 0.4:
        question = rng.choice(QUESTIONS)
        body["messages"] = [{"role": "user", "content": question}]
        return Case("/v1/chat/completions", body, [question], params)
    prompts = rng.sample(QUESTIONS, rng.choice([1, 1, 2]))
    body["prompt"] = prompts if len(prompts) > 1 else prompts[0]
    return Case("/v1/completions", body, prompts, params)


def _told(result: RequestOutput) -> Told:
    return [(o.text, {"steps": "length"}.get(o.finish_reason, o.finish_reason))
            for o in result.outputs]  # fmt: skip
