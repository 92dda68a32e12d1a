"""Reward-Guided Speculative Decoding: three models, one process, one paged KV memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rsd_engine.logs import show_on_stderr
from rsd_engine.steps import policies, scorers, selection
from rsd_engine.steps.policies import *  # noqa: F403
from rsd_engine.steps.scorers import *  # noqa: F403
from rsd_engine.steps.selection import *  # noqa: F403

if TYPE_CHECKING:
    __version__: str
    from rsd_engine.engine.engine import Engine
    from rsd_engine.engine.remote.model import RemoteModel
    from rsd_engine.models.reward.template import PrmTemplate
    from rsd_engine.outputs import (
        Candidate,
        CompletionOutput,
        EngineDeadError,
        FinishedEvent,
        Metrics,
        RejectedStep,
        RequestOutput,
        ScoredSolution,
        ScoredStep,
        Step,
        StepEvent,
    )
    from rsd_engine.sampling_params import SamplingParams

# Where the other names live. Loaded when first asked for: `rsd --help` need not wait for torch.
_HOMES = {
    "rsd_engine.engine.engine": ("Engine",),
    "rsd_engine.outputs": (
        "Candidate", "CompletionOutput", "EngineDeadError", "FinishedEvent", "Metrics",
        "RejectedStep", "RequestOutput", "ScoredSolution", "ScoredStep", "Step", "StepEvent",
    ),
    "rsd_engine.engine.remote.model": ("RemoteModel",),
    "rsd_engine.models.reward.template": ("PrmTemplate",),
    "rsd_engine.sampling_params": ("SamplingParams",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

show_on_stderr()

__all__ = [
    "Candidate",
    "CompletionOutput",
    "Engine",
    "EngineDeadError",
    "FinishedEvent",
    "Metrics",
    "PrmTemplate",
    "RejectedStep",
    "RemoteModel",
    "RequestOutput",
    "SamplingParams",
    "ScoredSolution",
    "ScoredStep",
    "Step",
    "StepEvent",
]
__all__ += policies.__all__ + scorers.__all__ + selection.__all__


if not TYPE_CHECKING:  # a type checker must see that other names do not exist

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib import metadata

            return metadata.version("rsd-engine")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
