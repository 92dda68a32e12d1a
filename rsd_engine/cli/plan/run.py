"""Computes what `rsd plan` shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.plan.device import find_device
from rsd_engine.cli.plan.models import ModelOptions, PlannedModel, find_models
from rsd_engine.engine.memory_estimate import MemoryEstimate, estimate_models
from rsd_engine.engine.memory_fit import CPU_SHARE
from rsd_engine.models.config import ModelConfig
from rsd_engine.roofline import rounds
from rsd_engine.roofline.rewrites import GuessedRewrite, guessed_rewrite, guessed_round
from rsd_engine.roofline.rounds import RoundSeconds, Setting, Speculation, Triple
from rsd_engine.roofline.shape import ModelShape
from rsd_kernels.state.enums import Role

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)  # of steps
TOKEN_ACCEPTANCES = (0.6, 0.7, 0.8, 0.9)
_LENGTHS = (1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class PlanOptions:
    """The options of the command; None takes the published figure or the engine's default."""

    draft: str
    target: str
    prm: str
    prm_format: str | dict[str, Any] | None
    revision: str | None
    gpu: str | None  # None: the CPU of this machine
    bandwidth: float | None  # GB/s
    tflops: float | None
    memory_bytes: int | None
    slots: int
    context: int
    step_tokens: int
    acceptance: float
    guess_acceptance: float
    dtype: str | None
    max_model_len: int | None
    gpu_memory_utilization: float | None
    quantization: str | None

    @property
    def sources(self) -> dict[Role, str]:
        return {Role.DRAFT: self.draft, Role.TARGET: self.target, Role.PRM: self.prm}

    @property
    def on_cpu(self) -> bool:
        return self.gpu is None

    @property
    def models(self) -> ModelOptions:
        return ModelOptions(
            self.sources, self.revision, self.on_cpu, self.dtype, self.quantization, self.prm_format
        )

    @property
    def is_measured(self) -> bool:
        """Whether a figure of the device is the user's."""
        figures = (self.bandwidth, self.tflops, self.memory_bytes)
        return any(figure is not None for figure in figures)


@dataclass(frozen=True)
class Plan:
    """The best speed of the three models, and the memory they need.

    Attributes:
        pass_seconds: (one token, one step) of every slot, by role.
        target_alone, draft_alone: tokens per second.
        speculation: by the share of draft tokens that are kept.
        rsd: tokens per second, by the share of draft steps that are kept.
        round: the parts of a round, at the acceptance asked for.
        rsd_guessed: tokens per second, if the tokens of rewrites are guessed and verified.
        rewrite: a rewrite with guesses.
        break_even: the least acceptance of steps at which RSD is as fast as the target alone
            ("target alone"), or as speculation at an acceptance of tokens; None if it never is.
        flops_ratio: see `rounds.flops_ratio`.
        lengths: of sequences, to show how many fit.
    """

    options: PlanOptions
    setting: Setting
    shapes: dict[Role, ModelShape]
    held_in: dict[Role, str | None]
    pass_seconds: dict[Role, tuple[float, float]]
    target_alone: float
    draft_alone: float
    speculation: dict[float, Speculation]
    rsd: dict[float, float]
    round: RoundSeconds
    rsd_guessed: float
    rewrite: GuessedRewrite
    break_even: dict[str | float, float | None]
    flops_ratio: dict[str, float]
    memory: MemoryEstimate
    lengths: tuple[int, ...]


def make_plan(options: PlanOptions) -> Plan:
    """Makes a plan.

    Raises:
        UsageError: the GPU is not known, or an option does not fit the models.
        ValueError: there is no such model, or the engine does not run its kind.
    """
    share = _utilization(options.gpu_memory_utilization)
    models = find_models(options.models)
    model_len = _model_len({role: model.config for role, model in models.items()}, options)
    device = find_device(options.gpu, options.bandwidth, options.tflops, options.memory_bytes)
    memory = estimate_models(
        {role: model.memory for role, model in models.items()},
        int(device.memory_bytes * (1 if options.on_cpu else share)),
        max_num_seqs=options.slots,
        max_model_len=model_len,
        on_gpu=not options.on_cpu,
    )
    if options.on_cpu:
        memory = _shared_with_others(memory)
    lengths = (*(n for n in _LENGTHS if n < model_len), model_len)
    setting = Setting(device, options.slots, options.context, options.step_tokens)
    return _plan(options, setting, models, memory, lengths)


def _shared_with_others(memory: MemoryEstimate) -> MemoryEstimate:
    """Contexts get a share of what the models leave, as `fit_memory` does it."""
    left = max(0, memory.pool + memory.growing)
    return replace(memory, available=memory.available - int((1 - CPU_SHARE) * left))


def _plan(
    options: PlanOptions,
    setting: Setting,
    models: dict[Role, PlannedModel],
    memory: MemoryEstimate,
    lengths: tuple[int, ...],
) -> Plan:
    shapes = {role: model.shape for role, model in models.items()}
    acceptance, draft, target = options.acceptance, shapes[Role.DRAFT], shapes[Role.TARGET]
    triple = Triple(draft, target, shapes[Role.PRM])
    alone = rounds.alone(target, setting)
    speculation = {a: rounds.speculate(draft, target, setting, a) for a in TOKEN_ACCEPTANCES}
    goals: dict[str | float, float] = {"target alone": alone}
    goals |= {a: found.tokens_per_second for a, found in speculation.items()}
    guessed = guessed_round(triple, setting, acceptance, options.guess_acceptance)
    return Plan(
        options=options,
        setting=setting,
        shapes=shapes,
        held_in={role: model.held_in for role, model in models.items()},
        pass_seconds={
            role: (setting.seconds(shape), setting.seconds(shape, setting.step_tokens))
            for role, shape in shapes.items()
        },
        target_alone=alone,
        draft_alone=rounds.alone(draft, setting),
        speculation=speculation,
        rsd={a: rounds.rsd(triple, setting, a) for a in sorted({*ACCEPTANCES, acceptance})},
        round=rounds.round_seconds(triple, setting, acceptance),
        rsd_guessed=setting.slots * setting.step_tokens / guessed.total,
        rewrite=guessed_rewrite(triple, setting, acceptance, options.guess_acceptance),
        break_even={name: rounds.break_even(triple, setting, goal) for name, goal in goals.items()},
        flops_ratio=rounds.flops_ratio(triple, setting.step_tokens, acceptance),
        memory=memory,
        lengths=lengths,
    )


def _utilization(given: float | None) -> float:
    share = 0.9 if given is None else given
    if not 0 < share <= 1:
        raise UsageError(f"gpu_memory_utilization must be in (0, 1], got {share}")
    return share


def _model_len(configs: dict[Role, ModelConfig], options: PlanOptions) -> int:
    allowed = min(configs[role].max_position_embeddings for role in (Role.DRAFT, Role.TARGET))
    found = allowed if options.max_model_len is None else options.max_model_len
    if not 2 <= found <= allowed:
        raise UsageError(
            f"max_model_len must be in [2, {allowed}], the context of draft and target, got {found}"
        )
    if options.context + options.step_tokens > found:
        raise UsageError(
            f"context={options.context} and a step of {options.step_tokens} tokens are more than "
            f"max_model_len={found}; lower --context or --step-tokens"
        )
    return found
