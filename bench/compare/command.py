"""This engine beside what else there is, in one run, on this machine's CPU.

    python -m bench.compare

Two parts. `decode`: one model alone on SmolLM2-135M, against transformers, and against llama.cpp
and vLLM where their Python interpreters are named. `rsd`: reward-guided speculation with the demo
family, against the paper's arrangement on transformers, and against the target alone, which is
what it has to beat in the end. Everything is gated by equal output, run in turn and given as the
median with its spread.
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
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate

DECODE_BATCHES, RSD_BATCHES = (1, 8), (1, 16)
PARTS = ("decode", "compiled", "rsd")


def main(arguments: Sequence[str] | None = None) -> None:
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
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=_positive, default=5)
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    parser.add_argument("--problems", type=_positive, default=16, help="of part rsd")
    parser.add_argument("--seed", type=int, default=0, help="of the problems")
    parser.add_argument("--tokens", type=_positive, default=128, help="new tokens in part decode")
    parser.add_argument("--model", help="of part decode; SmolLM2-135M-Instruct by default")
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[], help="parts to leave out")
    for name, package in (("llama-cpp", "llama-cpp-python"), ("vllm", "vLLM's CPU build")):
        parser.add_argument(f"--{name}", help=f"Python interpreter that has {package}")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
