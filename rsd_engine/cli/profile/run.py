"""Answer questions with every op timed, and compare with the least time of the same passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsd_engine import Engine, SamplingParams
from rsd_engine.cli.generate.command import make_engine
from rsd_engine.demo import ModelRole, checkpoint_dir
from rsd_engine.demo.problems import generate
from rsd_engine.loop.executors.timed_recorder import OpTime
from rsd_engine.outputs import Metrics
from rsd_engine.roofline.measured import read_bandwidth

_WARM_UP = 2  # problems
_ENGINE = (
    "revision", "device", "dtype", "max_num_seqs", "max_model_len", "kv_cache_memory_bytes",
    "policy",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What `rsd profile` found.

    Attributes:
        device: where the engine ran.
        ops: calls and seconds of every op, by "ROLE.op".
        passes: forward passes, by role.
        weight_bytes: read once a pass, by role.
        bandwidth: bytes a second, measured on this device.
        seconds: of the whole run.
        tokens: kept.
        metrics: of all requests together.
    """

    device: str
    ops: dict[str, OpTime]
    passes: dict[str, int]
    weight_bytes: dict[str, int]
    bandwidth: float
    seconds: float
    tokens: int
    metrics: Metrics

    def limit_seconds(self, role: str) -> float:
        """The least time of a role's passes: its weights read once each."""
        return self.passes[role] * self.weight_bytes[role] / self.bandwidth


def run_profile(given: dict[str, Any]) -> Profile:
    """`given` has the options of the command; None means the library's default."""
    roles: tuple[ModelRole, ...] = ("draft", "target", "prm")
    models: dict[str, Any] = {role: given[role] or checkpoint_dir(role) for role in roles}
    arguments = {name: given[name] for name in _ENGINE if given[name] is not None}
    questions = [p.question for p in generate(0, "test", given["problems"] + _WARM_UP)]
    chats = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(temperature=0.0, max_tokens=given["max_tokens"])
    arguments |= models | {"executor": "profile"}
    with make_engine(arguments, verbose=bool(given["verbose"])) as engine:
        engine.chat(chats[:_WARM_UP], params, use_tqdm=False)
        engine.reset_op_times()
        with _traced(given["trace"]):
            before = engine.metrics.seconds
            results = engine.chat(chats[_WARM_UP:], params, use_tqdm=False)
            seconds = engine.metrics.seconds - before
        return _profile(engine, [r.metrics for r in results], seconds)


def _profile(engine: Engine, metrics: list[Metrics], seconds: float) -> Profile:
    models = engine.parts.models.models
    device = engine.parts.core.state.length.device
    ops = engine.op_times
    total = sum(metrics, start=Metrics())
    return Profile(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        ops=ops,
        passes={
            role.name: ops[f"{role.name}.forward"].calls
            for role in models
            if f"{role.name}.forward" in ops
        },
        weight_bytes={role.name: model.weight_bytes for role, model in models.items()},
        bandwidth=read_bandwidth(device),
        seconds=seconds,
        tokens=total.draft.tokens_generated + total.target.tokens_generated,
        metrics=total,
    )


@contextmanager
def _traced(path: Path | None) -> Iterator[None]:
    """PyTorch's profiler around the run, if a trace is wanted."""
    if path is None:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(path))
