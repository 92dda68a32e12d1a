"""`rsd plan`: what three models can reach on a GPU, and what memory they need."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.errors import UsageError, clean_errors

HELP = (
    "Say what a draft, a target and a reward model can reach on a GPU at best, from which share of "
    "accepted steps on they pay, and how many sequences fit.\n\n"
    "Only the configs are read. The figures are limits of the hardware: weights and KV read once "
    "at the published bandwidth, products at the published rate. No engine is faster."
)
_GPU, _WORK = "GPU", "Work"

Gpu = Annotated[str | None, o.option(_GPU, "h100, a100-80gb, rtx4090, ... (required)", "--gpu")]
Bandwidth = Annotated[
    float | None,
    o.option(_GPU, "GB/s that were measured, in place of the published figure.", "--bandwidth"),
]
Tflops = Annotated[
    float | None,
    o.option(_GPU, "Measured TFLOP/s of a bf16 product, likewise.", "--tflops"),
]
Memory = Annotated[str | None, o.option(_GPU, "Memory of the GPU, such as 80GB.", "--memory")]
Slots = Annotated[int, o.option(_WORK, "Sequences that run at once.", "--slots", min=1)]
Context = Annotated[int, o.option(_WORK, "Tokens each of them holds.", "--context", min=1)]
StepTokens = Annotated[int, o.option(_WORK, "Tokens of a step.", "--step-tokens", min=1)]
Acceptance = Annotated[
    float,
    o.option(
        _WORK, "Share of the draft's steps that are kept.", "--acceptance",
        min=0.0, max=1.0,
    ),
]  # fmt: skip


def plan(
    draft: o.Draft = None,
    target: o.Target = None,
    prm: o.Prm = None,
    revision: o.Revision = None,
    gpu: Gpu = None,
    bandwidth: Bandwidth = None,
    tflops: Tflops = None,
    memory: Memory = None,
    slots: Slots = 1,
    context: Context = 1024,
    step_tokens: StepTokens = 40,
    acceptance: Acceptance = 0.8,
    dtype: o.Dtype = None,
    max_model_len: o.MaxModelLen = None,
    gpu_memory_utilization: o.GpuMemoryUtilization = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """See HELP."""
    given = dict(locals())
    with clean_errors():
        _run(given)


def _run(given: dict[str, Any]) -> None:
    missing = [f"--{name}" for name in ("draft", "target", "prm", "gpu") if given[name] is None]
    if missing:
        raise UsageError(f"a plan needs {', '.join(missing)}")
    if given["memory"] is not None:
        given["memory"] = values.size("--memory", given["memory"])
    from rsd_engine.cli.plan.run import make_plan
    from rsd_engine.cli.plan.show import print_json, print_plan

    found = make_plan(given)
    if given["json"]:
        print_json(found)
    else:
        print_plan(found)
