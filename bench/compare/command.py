"""This engine beside other programs, in one run, on this machine's CPU.

    python -m bench.compare

There are two parts. `decode`: SmolLM2-135M alone, beside transformers, and beside llama.cpp and
vLLM if their Python interpreters are named. `rsd`: RSD with the demo family, beside the paper's
arrangement on transformers, and beside the target alone, which RSD must beat in the end. All must
first give equal output; then they run in alternation, and the median is reported with its spread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from bench.compare import decode_part, rsd_part
from bench.compare.effect import Models
from bench.lib import report
from bench.lib.options import command_parser, positive
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate

DECODE_BATCHES, RSD_BATCHES = (1, 8), (1, 16)
PARTS = ("decode", "compiled", "rsd")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    result: dict[str, Any] = {"bench": "compare", "runs": options.runs}
    if "rsd" not in options.skip:
        result |= _rsd(options)
    if "decode" not in options.skip:
        result["decode"] = _decode(options)
    report.print_json(result)
    return 0


def _rsd(options: argparse.Namespace) -> dict[str, Any]:
    models = Models(checkpoint_dir("draft"), checkpoint_dir("target"), checkpoint_dir("prm"))
    problems = generate(options.seed, "test", options.problems)
    found = {}
    for batch in RSD_BATCHES:
        found[f"batch{batch}"] = rsd_part.measure(models, problems, batch, options.runs)
        print(rsd_part.show(found[f"batch{batch}"]), flush=True)
    return {
        "rsd": found,
        "vs_target": {name: m.pop("vs_target") for name, m in found.items()},
        "rsd_problems": {"count": options.problems, "seed": options.seed, "model": "demo family"},
    }


def _decode(options: argparse.Namespace) -> dict[str, Any]:
    peers = {"llama.cpp": options.llama_cpp, "vLLM": options.vllm}
    return decode_part.measure(
        options.model, DECODE_BATCHES, options.tokens, options.runs,
        peers=peers, compiled="compiled" not in options.skip,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("compare", __doc__)
    parser.add_argument("--runs", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--problems", type=positive, default=16, help="problems in part rsd")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems")
    parser.add_argument("--tokens", type=positive, default=128, help="new tokens in part decode")
    parser.add_argument("--model", help="model of part decode (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[], help="parts to leave out")
    for name, package in (("llama-cpp", "llama-cpp-python"), ("vllm", "vLLM's CPU build")):
        parser.add_argument(f"--{name}", help=f"Python interpreter that has {package}")
    return parser
