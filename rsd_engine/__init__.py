"""Reward-Guided Speculative Decoding: three models, one process, one paged KV memory."""

from rsd_engine.engine.engine import Engine
from rsd_engine.logs import show_on_stderr
from rsd_engine.outputs import (
    CompletionOutput,
    FinishedEvent,
    Metrics,
    RejectedStep,
    RequestOutput,
    Step,
    StepEvent,
)
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.steps.policies import Clip, Constant, Logistic, Policy, Sigmoidal, Threshold

show_on_stderr()

__all__ = [
    "Clip",
    "CompletionOutput",
    "Constant",
    "Engine",
    "FinishedEvent",
    "Logistic",
    "Metrics",
    "Policy",
    "RejectedStep",
    "RequestOutput",
    "SamplingParams",
    "Sigmoidal",
    "Step",
    "StepEvent",
    "Threshold",
]
