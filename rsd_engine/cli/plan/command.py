"""`rsd plan`: how fast three models can be on a GPU at best, and what memory they need."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.errors import UsageError, clean_errors
from rsd_kernels.state.enums import Role

HELP = (
    "Estimate the best speed of three models on a GPU, and the memory they need.\n\n"
    "It shows how many draft steps must be kept for RSD to pay, and how many sequences fit. Only "
    "the configs are read. The speeds are a roofline: weights and KV are read once at the "
    "published bandwidth, products computed at the published rate. No engine can be faster."
)
_GPU, _WORK = "GPU", "Work"
_MODEL_FORMATS = "Quantised weights (the engine expands them when it loads a model)"

Gpu = Annotated[str | None, o.option(_GPU, "h100, a100-80gb, rtx4090, ...; required.", "--gpu")]
Bandwidth = Annotated[
    float | None,
    o.option(_GPU, "Measured GB/s of memory, in place of the published figure.", "--bandwidth"),
]
Tflops = Annotated[
    float | None,
    o.option(
        _GPU, "Measured TFLOP/s of bf16 products, in place of the published figure.", "--tflops"
    ),
]
Memory = Annotated[str | None, o.option(_GPU, "Memory of the GPU, such as 80GB.", "--memory")]


def _quantization(role: str) -> Any:
    return o.option(
        _MODEL_FORMATS, f"As if the {role}'s weights were stored so: int4, fp8, q4_k, ...",
        f"--{role.lower()}-quantization",
    )  # fmt: skip


DraftQuantization = Annotated[str | None, _quantization("draft")]
TargetQuantization = Annotated[str | None, _quantization("target")]
PrmQuantization = Annotated[str | None, _quantization("PRM")]
Slots = Annotated[
    int, o.option(_WORK, "Sequences that run at once.", "--slots", min=1, max=o.MAX_COUNT)
]
Context = Annotated[
    int, o.option(_WORK, "Tokens of each sequence.", "--context", min=1, max=o.MAX_COUNT)
]
StepTokens = Annotated[
    int, o.option(_WORK, "Tokens per step.", "--step-tokens", min=1, max=o.MAX_COUNT)
]
Acceptance = Annotated[
    float,
    o.option(_WORK, "Share of draft steps that are kept.", "--acceptance", min=0.0, max=1.0),
]

GuessAcceptance = Annotated[
    float,
    o.option(
        _WORK, "Share of guessed tokens in rewrites that are right.", "--guess-acceptance",
        min=0.0, max=1.0,
    ),
]  # fmt: skip

Launches = Annotated[
    bool,
    o.option(
        _WORK,
        "Print instead, by kernel, the time that a tick of the draft and of the target should "
        "take. Needs --gpu and one of the two; a model to hold measurements against, no bound.",
        "--launches",
    ),
]


def plan(
    draft: o.Draft = None,
    target: o.Target = None,
    prm: o.Prm = None,
    revision: o.Revision = None,
    draft_quantization: DraftQuantization = None,
    target_quantization: TargetQuantization = None,
    prm_quantization: PrmQuantization = None,
    gpu: Gpu = None,
    bandwidth: Bandwidth = None,
    tflops: Tflops = None,
    memory: Memory = None,
    slots: Slots = 1,
    context: Context = 1024,
    step_tokens: StepTokens = 40,
    acceptance: Acceptance = 0.8,
    guess_acceptance: GuessAcceptance = 0.8,
    dtype: o.Dtype = None,
    max_model_len: o.MaxModelLen = None,
    gpu_memory_utilization: o.GpuMemoryUtilization = None,
    launches: Launches = False,
    verbose: o.Verbose = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """See HELP."""
    required = {"draft": draft, "target": target, "prm": prm, "gpu": gpu}
    formats = {
        Role.DRAFT: draft_quantization,
        Role.TARGET: target_quantization,
        Role.PRM: prm_quantization,
    }
    quantization = {role: name for role, name in formats.items() if name is not None}
    named = {name: value for name, value in required.items() if value is not None}
    with clean_errors(verbose=bool(verbose)):
        if launches:
            from rsd_engine.cli.plan.launches import LaunchesOptions, print_launches
            from rsd_engine.cli.plan.run import find_formats

            print_launches(
                LaunchesOptions(
                    draft, target, revision, gpu, bandwidth, slots, context, dtype, json,
                    find_formats(quantization),
                )
            )  # fmt: skip
            return
        if missing := [f"--{name}" for name in required if name not in named]:
            raise UsageError(f"a plan needs {', '.join(missing)}")
        memory_bytes = None if memory is None else values.size("--memory", memory)
        from rsd_engine.cli.plan.run import PlanOptions, make_plan
        from rsd_engine.cli.plan.show import print_json, print_plan

        options = PlanOptions(
            **named,
            revision=revision,
            bandwidth=bandwidth,
            tflops=tflops,
            memory_bytes=memory_bytes,
            slots=slots,
            context=context,
            step_tokens=step_tokens,
            acceptance=acceptance,
            guess_acceptance=guess_acceptance,
            dtype=dtype,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            quantization=quantization,
        )
        (print_json if json else print_plan)(make_plan(options))
