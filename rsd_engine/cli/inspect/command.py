"""`rsd inspect`: what checkpoints are, and whether they fit together."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.errors import FAILED, UsageError, clean_errors

HELP = (
    "Show what one to three checkpoints are, and whether an engine can run them together.\n\n"
    "Configs and tokenizers are read, weights are not. A reward model is the PRM; of two other "
    "models the smaller is the draft. The exit code is 1 if there is a problem."
)

Models = Annotated[
    list[str] | None,
    typer.Argument(help="Folders, hub ids or GGUF files.", show_default=False),
]
Memory = Annotated[
    str | None,
    o.option("Device and memory", "Memory, such as 24GiB (default: this machine's)", "--memory"),
]


def inspect(
    models: Models = None,
    draft: o.Draft = None,
    target: o.Target = None,
    prm: o.Prm = None,
    prm_format: o.PrmFormat = None,
    prm_separator: o.PrmSeparator = None,
    revision: o.Revision = None,
    quantization: o.QuantizationOption = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    memory: Memory = None,
    max_num_seqs: o.MaxNumSeqs = None,
    max_model_len: o.MaxModelLen = None,
    gpu_memory_utilization: o.GpuMemoryUtilization = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    verbose: o.Verbose = None,
) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(verbose)):
        given = {"draft": draft, "target": target, "prm": prm}
        named = {name: value for name, value in given.items() if value is not None}
        others = models or []
        if not 1 <= len(named) + len(others) <= 3:
            raise UsageError(
                f"give one to three models, got {len(named) + len(others)}; as rsd inspect DRAFT "
                "TARGET PRM"
            )
        if prm is None and (prm_format or prm_separator) is not None:
            raise UsageError("--prm-format and --prm-separator need --prm")
        memory_bytes = None if memory is None else values.size("--memory", memory)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("rsd_engine").setLevel(logging.INFO if verbose else logging.WARNING)
        from rsd_engine.cli.inspect.report import print_json
        from rsd_engine.cli.inspect.run import InspectOptions, run_inspection
        from rsd_engine.cli.inspect.show import print_inspection

        options = InspectOptions(
            named=named,
            others=others,
            prm_format=values.prm_format("--prm-format", prm_format) if prm_format else None,
            prm_separator=values.unescape("--prm-separator", prm_separator or "") or None,
            revision=revision,
            device=device,
            dtype=dtype,
            quantization=(
                values.quantization("--quantization", quantization) if quantization else None
            ),
            memory_bytes=memory_bytes,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
        )
        found = run_inspection(options)
        (print_json if json else print_inspection)(found)
    if not found.fits:
        raise typer.Exit(FAILED)
