"""`rsd plan`: how fast three models can be on a device at best, and what memory they need."""

from __future__ import annotations

from typing import Annotated

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.errors import UsageError, clean_errors

HELP = (
    "Estimate the best speed of three models on a GPU or this CPU, and the memory they need.\n\n"
    "It shows how many draft steps must be kept for RSD to pay, and how many sequences fit. Only "
    "the configs are read, and headers of weights. The speeds are a roofline: weights and KV are "
    "read once at the bandwidth, products computed at the rate that is published, or measured on "
    "a CPU. No engine can be faster."
)
_GPU, _WORK = "GPU", "Work"

Gpu = Annotated[
    str | None,
    o.option(_GPU, "h100, a100-80gb, rtx4090, ...; required without --device cpu.", "--gpu"),
]
Device = Annotated[
    str | None,
    o.option(_GPU, "cpu: this machine, whose rates are measured, in place of a GPU.", "--device"),
]
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


Quantization = Annotated[
    str | None,
    o.option(
        "Models",
        "Plan plain weights as int8 or int4, on a GPU also as fp8, int4-g64 or int4-g32, with "
        "--device cpu also as q4_k, q8_0, ...; or by role, such as draft=fp8,target=int4",
        "--quantization",
    ),
]
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
    prm_format: o.PrmFormat = None,
    revision: o.Revision = None,
    quantization: Quantization = None,
    gpu: Gpu = None,
    device: Device = None,
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
    required = {"draft": draft, "target": target, "prm": prm}
    named = {name: value for name, value in required.items() if value is not None}
    with clean_errors(verbose=bool(verbose)):
        if launches:
            from rsd_engine.cli.plan.launches import LaunchesOptions, print_launches

            if device is not None:
                raise UsageError(f"--launches is of a GPU: leave out --device, got {device}")
            print_launches(
                LaunchesOptions(
                    draft, target, revision, gpu, bandwidth, slots, context, dtype, quantization,
                    json,
                )
            )  # fmt: skip
            return
        if device not in (None, "cpu") or (device and gpu):
            raise UsageError(
                f"--device may be cpu, without --gpu, and a GPU is named by --gpu; got {device}"
            )
        names = required if device else {**required, "gpu": gpu}
        if missing := [f"--{name}" for name, value in names.items() if value is None]:
            raise UsageError(f"a plan needs {', '.join(missing)}")
        memory_bytes = None if memory is None else values.size("--memory", memory)
        from rsd_engine.cli.plan.run import PlanOptions, make_plan
        from rsd_engine.cli.plan.show import print_json, print_plan

        options = PlanOptions(
            **named,
            prm_format=values.prm_format("--prm-format", prm_format) if prm_format else None,
            revision=revision,
            gpu=gpu,
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
