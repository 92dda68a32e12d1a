"""`rsd profile`: where the time of the loop goes, by role and op."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli import values
from rsd_engine.cli.errors import UsageError, clean_errors

HELP = (
    "Time every op of the loop, by role, beside the least time that the memory allows.\n\n"
    "Every op is a graph of its own here, so all of it runs a little slower than in the device "
    "loop. Without models the demo family is profiled; the questions are the demo's."
)


def profile(
    draft: o.Draft = None,
    target: o.Target = None,
    prm: o.Prm = None,
    revision: o.Revision = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    max_num_seqs: o.MaxNumSeqs = None,
    max_model_len: o.MaxModelLen = None,
    kv_cache_memory: o.KvCacheMemory = None,
    policy: o.PolicyOption = None,
    problems: Annotated[
        int, typer.Option("--problems", help="Questions that are answered.", min=1)
    ] = 32,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Most tokens of an answer.", min=1)
    ] = 256,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Also write PyTorch's profile there, for chrome://tracing."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    verbose: o.Verbose = None,
) -> None:
    """See HELP."""
    given = dict(locals())
    with clean_errors():
        _run(given)


def _run(given: dict[str, Any]) -> None:
    named = [name for name in ("draft", "target", "prm") if given[name] is not None]
    if named and len(named) < 3:
        raise UsageError("give --draft, --target and --prm, or none of them for the demo family")
    memory = given.pop("kv_cache_memory")
    given["kv_cache_memory_bytes"] = (
        None if memory is None else values.size("--kv-cache-memory", memory)
    )
    if given["policy"] is not None:
        given["policy"] = values.policy("--policy", given["policy"])
    from rsd_engine.cli.profile.run import run_profile
    from rsd_engine.cli.profile.show import print_json, print_profile

    found = run_profile(given)
    if given["json"]:
        print_json(found)
    else:
        print_profile(found)
