"""The sums behind `rsd plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rsd_engine.cli.errors import UsageError
from rsd_engine.engine.memory_estimate import MemoryEstimate, estimate_memory
from rsd_engine.models.config import DTYPES, ModelConfig
from rsd_engine.roofline import rounds
from rsd_engine.roofline.gpus import Device, find_gpu
from rsd_engine.roofline.rounds import RoundSeconds, Setting, Speculation, Triple
from rsd_engine.roofline.shape import ModelShape
from rsd_engine.roofline.sources import find_config
from rsd_kernels.state.enums import Role

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)  # of steps
TOKEN_ACCEPTANCES = (0.6, 0.7, 0.8, 0.9)
_LENGTHS = (1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class ModelFacts:
    """A model as it was named, and its sizes."""

    source: str
    shape: ModelShape


@dataclass(frozen=True)
class Plan:
    """What the three models can reach at best, and the memory they need.

    Attributes:
        is_measured: some figure of the device was given by the user.
        pass_seconds: of each role, with (one token, a step) of every slot.
        target_alone, draft_alone: tokens a second.
        speculation: by acceptance of tokens.
        rsd: tokens a second, by acceptance of steps.
        round: the parts of a round at `acceptance`.
        break_even: the least acceptance of steps that reaches the target alone ("target alone")
            or speculation at an acceptance of tokens; None if none does.
        flops_ratio: see `rounds.flops_ratio`.
        lengths: of sequences, for what fits.
    """

    models: dict[Role, ModelFacts]
    setting: Setting
    is_measured: bool
    acceptance: float
    pass_seconds: dict[Role, tuple[float, float]]
    target_alone: float
    draft_alone: float
    speculation: dict[float, Speculation]
    rsd: dict[float, float]
    round: RoundSeconds
    break_even: dict[str | float, float | None]
    flops_ratio: dict[str, float]
    memory: MemoryEstimate
    lengths: tuple[int, ...]


def make_plan(wanted: dict[str, Any]) -> Plan:
    """Works out a plan from the options of the command.

    Raises:
        UsageError: the GPU is not known, or an option does not fit the models.
        ValueError: a model is not there or not of a kind that the engine runs.
    """
    device = _device(wanted)
    configs = {
        role: find_config(wanted[role.name.lower()], wanted["revision"])
        for role in (Role.DRAFT, Role.TARGET, Role.PRM)
    }
    _check_roles(configs, wanted)
    dtype = _dtype(wanted["dtype"])
    shapes = {role: ModelShape.of(config, dtype) for role, config in configs.items()}
    setting = Setting(device, wanted["slots"], wanted["context"], wanted["step_tokens"])
    model_len = _model_len(configs, wanted)
    memory = estimate_memory(
        configs,
        dtype=dtype,
        memory_bytes=device.memory_bytes,
        utilization=_utilization(wanted["gpu_memory_utilization"]),
        max_num_seqs=setting.slots,
        max_model_len=model_len,
    )
    lengths = (*(n for n in _LENGTHS if n < model_len), model_len)
    measured = any(wanted[name] is not None for name in ("bandwidth", "tflops", "memory"))
    models = {role: ModelFacts(wanted[role.name.lower()], s) for role, s in shapes.items()}
    return _plan(models, setting, wanted["acceptance"], measured, memory, lengths)


def _plan(
    models: dict[Role, ModelFacts],
    setting: Setting,
    acceptance: float,
    is_measured: bool,
    memory: MemoryEstimate,
    lengths: tuple[int, ...],
) -> Plan:
    draft, target, prm = (models[r].shape for r in (Role.DRAFT, Role.TARGET, Role.PRM))
    triple = Triple(draft, target, prm)
    alone = rounds.alone(target, setting)
    speculation = {
        alpha: rounds.speculate(draft, target, setting, alpha) for alpha in TOKEN_ACCEPTANCES
    }
    goals: dict[str | float, float] = {"target alone": alone}
    goals |= {alpha: found.tokens_per_second for alpha, found in speculation.items()}
    return Plan(
        models=models,
        setting=setting,
        is_measured=is_measured,
        acceptance=acceptance,
        pass_seconds={
            role: (setting.seconds(m.shape), setting.seconds(m.shape, setting.step_tokens))
            for role, m in models.items()
        },
        target_alone=alone,
        draft_alone=rounds.alone(draft, setting),
        speculation=speculation,
        rsd={a: rounds.rsd(triple, setting, a) for a in sorted({*ACCEPTANCES, acceptance})},
        round=rounds.round_seconds(triple, setting, acceptance),
        break_even={name: rounds.break_even(triple, setting, goal) for name, goal in goals.items()},
        flops_ratio=rounds.flops_ratio(triple, setting.step_tokens, acceptance),
        memory=memory,
        lengths=lengths,
    )


def _device(wanted: dict[str, Any]) -> Device:
    bandwidth, tflops = wanted["bandwidth"], wanted["tflops"]
    try:
        return find_gpu(wanted["gpu"]).measured(
            bandwidth=None if bandwidth is None else bandwidth * 1e9,
            flops=None if tflops is None else tflops * 1e12,
            memory_bytes=wanted["memory"],
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_roles(configs: dict[Role, ModelConfig], wanted: dict[str, Any]) -> None:
    for role, config in configs.items():
        if config.is_reward_model != (role == Role.PRM):
            kind = "a reward model" if config.is_reward_model else "a language model"
            name = role.name.lower()
            raise UsageError(f"--{name} {wanted[name]!r} is {kind} ({config.architecture})")


def _dtype(name: str | None) -> torch.dtype | None:
    if name in (None, "auto"):
        return None
    if name not in DTYPES:
        raise UsageError(f"dtype={name!r} is not supported; auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _utilization(given: float | None) -> float:
    share = 0.9 if given is None else given
    if not 0 < share <= 1:
        raise UsageError(f"gpu_memory_utilization must be in (0, 1], got {share}")
    return share


def _model_len(configs: dict[Role, ModelConfig], wanted: dict[str, Any]) -> int:
    allowed = min(configs[role].max_position_embeddings for role in (Role.DRAFT, Role.TARGET))
    found = allowed if wanted["max_model_len"] is None else wanted["max_model_len"]
    if not 2 <= found <= allowed:
        raise UsageError(
            f"max_model_len must be in [2, {allowed}], the context of draft and target, got {found}"
        )
    need = wanted["context"] + wanted["step_tokens"]
    if need > found:
        raise UsageError(
            f"context={wanted['context']} and a step of {wanted['step_tokens']} tokens are more "
            f"than max_model_len={found}"
        )
    return int(found)
