"""`rsd profile`: the time of every op of the loop, by role."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.errors import UsageError, clean_errors

HELP = (
    "Time every op of the loop, and compare forward passes with their roofline.\n\n"
    "Every op is a graph of its own here, so the run is a little slower than in the device loop. "
    "Without models the demo family is profiled. The questions are those of the demo."
)


def profile(
    draft: o.Draft = None,
    target: o.Target = None,
    prm: o.Prm = None,
    prm_format: o.PrmFormat = None,
    prm_separator: o.PrmSeparator = None,
    revision: o.Revision = None,
    quantization: o.QuantizationOption = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    max_num_seqs: o.MaxNumSeqs = None,
    max_model_len: o.MaxModelLen = None,
    kv_cache_memory: o.KvCacheMemory = None,
    policy: o.PolicyOption = None,
    problems: Annotated[
        int,
        typer.Option("--problems", help="How many questions to answer.", min=1, max=o.MAX_PROBLEMS),
    ] = 32,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Most tokens per answer.", min=1, max=o.MAX_COUNT)
    ] = 256,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Also write PyTorch's trace here, for chrome://tracing."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    verbose: o.Verbose = None,
) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(verbose)):
        if len({draft is None, target is None, prm is None}) > 1:
            raise UsageError("give --draft, --target and --prm, or none for the demo family")
        engine: dict[str, Any] = {
            "draft": draft,
            "target": target,
            "prm": prm,
            "revision": revision,
            "device": device,
            "dtype": dtype,
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len,
        }
        if kv_cache_memory is not None:
            engine["kv_cache_memory_bytes"] = values.size("--kv-cache-memory", kv_cache_memory)
        if policy is not None:
            engine["policy"] = values.policy("--policy", policy)
        if quantization is not None:
            engine["quantization"] = values.quantization("--quantization", quantization)
        if prm_format is not None:
            engine["prm_format"] = values.prm_format("--prm-format", prm_format)
        if prm_separator is not None:
            engine["prm_separator"] = values.unescape("--prm-separator", prm_separator)
        if trace is not None:
            _check_writable(trace)
        from rsd_engine.cli.profile.run import ProfileOptions, run_profile
        from rsd_engine.cli.profile.show import print_json, print_profile

        given = {name: value for name, value in engine.items() if value is not None}
        options = ProfileOptions(given, problems, max_tokens, trace, bool(verbose))
        (print_json if json else print_profile)(run_profile(options))


def _check_writable(trace: Path) -> None:
    """PyTorch writes its trace at the end, and only logs that it could not."""
    try:
        trace.open("ab").close()
    except OSError as error:
        raise UsageError(f"cannot write the trace {trace}: {error.strerror}") from None
