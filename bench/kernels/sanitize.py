"""Small launches of schedule, rollback, fork and attention for compute-sanitizer.

    python -m bench.sanitize --tool memcheck     # runs itself under compute-sanitizer
    python -m bench.sanitize --dry-run           # the same launches on a CPU, without it

The sanitizer checks every access to memory; without it, this only shows that the launches end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.kernels.attention_cases import attention_case
from bench.kernels.gate import require_equal
from bench.kernels.loop_op_cases import rollback_case
from bench.kernels.loop_op_state import TOKENS_PER_PAGE, LoopOpSizes, copied, mid_step
from bench.kernels.setting import Setting
from bench.lib import report
from bench.lib.options import command_parser
from bench.lib.timing import Mismatch
from rsd_kernels import ops
from rsd_kernels.fork import twin as fork_twin
from rsd_kernels.state.enums import Phase
from rsd_kernels.state.rows import RowBatch

TOOLS = ("memcheck", "racecheck")
_ERROR_STATUS = 77  # of the sanitizer, when it found something


def schedule(device: torch.device) -> None:
    sizes = LoopOpSizes.tiny()
    state = mid_step(sizes, device)
    state.phase.fill_(Phase.DRAFT)
    state.kv_len.sub_(1)
    batch = RowBatch.allocate(64, sizes.num_slots, device)
    ops.schedule(state, batch, TOKENS_PER_PAGE)
    if int(state.num_rows) != sizes.num_slots:
        raise Mismatch(f"schedule packed {int(state.num_rows)} rows for {sizes.num_slots} slots")


def rollback(device: torch.device) -> None:
    rollback_case(LoopOpSizes.tiny(), device).gate()


def fork(device: torch.device) -> None:
    state = mid_step(LoopOpSizes.tiny(), device)
    targets = [1, 2]
    for slot in targets:
        ops.truncate_kv(state, slot, (0, 0, 0), TOKENS_PER_PAGE)
    pages = torch.randint(0, 256, (state.free_pages.shape[0], 20000), dtype=torch.uint8)
    wanted, found = copied(state, torch.device("cpu")), pages.to(device, copy=True)
    fork_twin.fork(wanted, pages, 0, targets, TOKENS_PER_PAGE)
    ops.fork(state, found, 0, targets, TOKENS_PER_PAGE)
    require_equal({"pages": found} | vars(state), {"pages": pages} | vars(wanted), "fork")


def attention(device: torch.device) -> None:
    setting = replace(Setting.tiny(), device=device)
    for num_rows in setting.rows:
        attention_case(setting, setting.shapes["tiny"], num_rows).gate()


CASES = {"schedule": schedule, "rollback": rollback, "fork": fork, "attention": attention}


def find_sanitizer() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [str(Path(home, "bin")) for home in homes if home]
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])
    return shutil.which("compute-sanitizer", path=path)


@dataclass(frozen=True)
class Run:
    """What one tool of compute-sanitizer found.

    Attributes:
        status: exit status; 0 if it found nothing.
        said: the last lines of its output.
    """

    tool: str
    status: int
    said: list[str]


def under(tool: str, sanitizer: str) -> Run:
    """Runs this module's launches under one tool of compute-sanitizer."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(_ERROR_STATUS)]
    command += ["--target-processes", "all", sys.executable, "-m", "bench.sanitize", "--launch"]
    # Every tensor gets its own allocation, so that no access past its end hits another one.
    variables = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    lines = (done.stdout + done.stderr).splitlines()
    said = [line for line in lines if line.startswith("=========")] or lines
    return Run(tool, done.returncode, said[-15:])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("sanitize", __doc__)
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument(
        "--dry-run", action="store_true", help="launch on a CPU, without the sanitizer"
    )
    parser.add_argument(
        "--launch", action="store_true", help="launch on the GPU, without the sanitizer"
    )
    options = parser.parse_args(arguments)
    if options.dry_run or options.launch:
        device = torch.device("cpu" if options.dry_run else "cuda:0")
        for case in CASES.values():
            case(device)
        report.print_json({"bench": "sanitize", "launched": list(CASES), "runs": []})
        return 0
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("compute-sanitizer was not found (looked at CUDA_HOME, CUDA_PATH and PATH)")
        return 1
    runs = []
    for tool in options.tool:
        run = under(tool, sanitizer)
        runs.append(run)
        print(f"{run.tool}: status {run.status}", *run.said, sep="\n")
        results = [vars(run) for run in runs]
        report.print_json({"bench": "sanitize", "launched": list(CASES), "runs": results})
    return 1 if any(run.status for run in runs) else 0
