"""Answers questions with every op timed, and finds the least time of the same passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsd_engine import Engine, SamplingParams
from rsd_engine.cli.engine_options import make_engine
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.demo.problems import generate
from rsd_engine.engine.weight_use import read_by_format
from rsd_engine.loop.executors.timed_recorder import OpTime
from rsd_engine.outputs import Metrics
from rsd_engine.roofline.measured import read_bandwidth

_WARM_UP = 2  # problems


@dataclass(frozen=True)
class ProfileOptions:
    """The options of the command."""

    engine: Mapping[str, Any]  # arguments of Engine; without models the demo family is profiled
    problems: int
    max_tokens: int
    trace: Path | None
    verbose: bool


@dataclass(frozen=True)
class Profile:
    """What `rsd profile` has measured.

    Attributes:
        device: where the engine ran.
        ops: calls and seconds of every op, by "ROLE.op".
        passes: forward passes, by role.
        reads: bytes of the weights that a pass reads, by role and format.
        bandwidth: bytes per second, measured on this device.
        seconds: time in launches.
        tokens: kept tokens of all answers.
    """

    device: str
    ops: dict[str, OpTime]
    passes: dict[str, int]
    reads: dict[str, dict[str, int]]
    bandwidth: float
    seconds: float
    tokens: int

    def read_bytes(self, role: str) -> int:
        """Of a role's weights, in a pass."""
        return sum(self.reads[role].values())

    def roofline_seconds(self, role: str) -> float:
        """The least time of a role's passes, in which its weights are read once per pass."""
        return self.passes[role] * self.read_bytes(role) / self.bandwidth


def run_profile(options: ProfileOptions) -> Profile:
    """Answers the demo's questions with every op timed."""
    models: dict[str, Any] = {role: checkpoint_dir(role) for role in ROLES}
    arguments = models | dict(options.engine) | {"executor": "profile"}
    questions = [p.question for p in generate(0, "test", options.problems + _WARM_UP)]
    chats = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(temperature=0.0, max_tokens=options.max_tokens)
    with make_engine(arguments, verbose=options.verbose) as engine:
        engine.chat(chats[:_WARM_UP], params, use_tqdm=False)
        engine.reset_op_times()
        with _traced(options.trace):
            before = engine.metrics.seconds
            results = engine.chat(chats[_WARM_UP:], params, use_tqdm=False)
            seconds = engine.metrics.seconds - before
        return _profile(engine, [r.metrics for r in results], seconds)


def _profile(engine: Engine, metrics: list[Metrics], seconds: float) -> Profile:
    models = engine.parts.models.models
    device = engine.parts.core.state.length.device
    ops = engine.op_times
    return Profile(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        ops=ops,
        passes={
            role.name: ops[f"{role.name}.forward"].calls
            for role in models
            if f"{role.name}.forward" in ops
        },
        reads={role.name: read_by_format(model) for role, model in models.items()},
        bandwidth=read_bandwidth(device),
        seconds=seconds,
        tokens=sum(m.draft.tokens_generated + m.target.tokens_generated for m in metrics),
    )


@contextmanager
def _traced(path: Path | None) -> Iterator[None]:
    """Runs PyTorch's profiler and writes its trace to `path`; does nothing if that is None."""
    if path is None:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(path))
