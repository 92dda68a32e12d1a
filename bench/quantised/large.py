"""RSD with a target of 7B in 4 bits on a CPU: seconds a step, memory, and what `rsd plan` says.

    python -m bench.quantised.large [--folder DIR]

Three GGUF files of Q4_K are written first: Qwen2.5-7B as the target, Qwen2.5-1.5B as the draft and
as the PRM (6 GB in all, in DIR, where they stay, or in a temporary folder). Their blocks are
random, so only costs count: every step is scored, and a given share of them is kept whatever the
score. Keys and values of the prompt are random numbers too. Beside each time stands the least time
by `rsd plan`; a busy machine measures lower rates and makes it too long.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch

from bench.lib import report
from bench.lib.options import command_parser, positive, share
from bench.lib.play import fill_pages, play
from bench.lib.scenes import ModeName, Scene, scene_of
from bench.quantised.large_files import LARGE, TINY, Sizes, num_bytes, write_models
from rsd_engine import Engine
from rsd_engine.cli.plan.run import Plan, PlanOptions, make_plan
from rsd_engine.cli.plan.show import print_plan, to_dict
from rsd_engine.memory.available import megabytes
from rsd_kernels.state.enums import Role

HEADERS = ("1 sequence", "s a step", "least", "draft s", "PRM s", "target s", "passes of target")
_SPARE = 2**30  # bytes that stay free on the disk


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = TINY if options.dry_run else LARGE
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        began = time.perf_counter()
        paths = write_models(_with_room(folder, sizes), sizes)
        print(f"files: {megabytes(num_bytes(sizes))}, {time.perf_counter() - began:.1f} s")
        plan = make_plan(_plan_options(paths, options))
        print_plan(plan)
        result = _measured(paths, options, plan)
    report.print_json(result)
    return 0


def _measured(paths: Mapping[str, Path], options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    scenes = {mode: _scene(mode, options) for mode in ("rsd", "target", "draft")}
    longest = max(scene.model_len for scene in scenes.values())
    began = time.perf_counter()
    with Engine(**paths, device="cpu", max_num_seqs=1, max_model_len=longest) as engine:  # type: ignore[arg-type]
        loading = time.perf_counter() - began
        print(f"{engine.memory.text()}\n")
        fill_pages(engine)
        played = {mode: play(engine, scene) for mode, scene in scenes.items()}
        memory = engine.memory.to_dict()
    peak = 1024 * getrusage(RUSAGE_SELF).ru_maxrss
    least = _least(plan)
    rows, found = [], {}
    for mode, run in played.items():
        steps = scenes[mode].num_steps
        of_role = {r.name.lower(): run.role_seconds[r] / steps for r in Role}
        seconds, passes = run.seconds / steps, run.passes[Role.TARGET] / steps
        found[mode] = {
            "step_seconds": seconds, "least": least[mode], "role_seconds": of_role,
            "target_passes": passes, "steps": steps, "rejected": run.rejected,
        }  # fmt: skip
        parts = [f"{of_role[name]:.2f}" for name in ("draft", "prm", "target")]
        rows.append([mode, f"{seconds:.2f}", f"{least[mode]:.2f}", *parts, f"{passes:.1f}"])
    print(report.format_table(HEADERS, rows))
    print(f"engine made in {loading:.1f} s; most memory held: {megabytes(peak)}, files included")
    return {
        "bench": "quantised.large",
        "context": options.context,
        "step_tokens": options.step_tokens,
        "acceptance": options.acceptance,
        "loading_seconds": loading,
        "peak_bytes": peak,
        "memory": memory,
        "modes": found,
        "plan": to_dict(plan),
    }


def _scene(mode: ModeName, options: argparse.Namespace) -> Scene:
    """A writer alone has a fifth of the steps: all of them cost the same."""
    steps = options.steps if mode == "rsd" else max(1, options.steps // 5)
    scene = Scene(mode, 1.0, 1, options.context, options.step_tokens, steps)
    return scene_of(scene, 1 - options.acceptance) if mode == "rsd" else scene


def _least(plan: Plan) -> dict[str, float]:
    """Seconds a step at best."""
    tokens = plan.setting.step_tokens
    return {
        "rsd": plan.round.total,
        "target": tokens / plan.target_alone,
        "draft": tokens / plan.draft_alone,
    }


def _plan_options(paths: Mapping[str, Path], options: argparse.Namespace) -> PlanOptions:
    return PlanOptions(
        **{role: str(path) for role, path in paths.items()},
        prm_format=None, revision=None, gpu=None, bandwidth=options.bandwidth,
        tflops=options.tflops, memory_bytes=None,
        slots=1, context=options.context, step_tokens=options.step_tokens,
        acceptance=options.acceptance, guess_acceptance=0.8, dtype=None, max_model_len=None,
        gpu_memory_utilization=None, quantization=None,
    )  # fmt: skip


def _with_room(folder: Path, sizes: Sizes) -> Path:
    """The folder, made if need be.

    Raises:
        SystemExit: the files do not fit on its disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in folder.glob("*.gguf"))
    needed, free = num_bytes(sizes) - there + _SPARE, shutil.disk_usage(folder).free
    if needed > free:
        raise SystemExit(
            f"--folder {folder} has {megabytes(free)} free, and {megabytes(needed)} are needed; "
            "name another"
        )
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("quantised.large", __doc__)
    parser.add_argument("--folder", type=Path, help="where the files are, or are written and kept")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--context", type=positive, default=256, help="tokens of the prompt")
    parser.add_argument("--step-tokens", type=positive, default=40)
    parser.add_argument("--steps", type=positive, default=10, help="of RSD (default: 10)")
    parser.add_argument("--acceptance", type=share, default=0.8, help="share of kept draft steps")
    parser.add_argument("--bandwidth", type=float, help="GB/s of a quiet machine, for the plan")
    parser.add_argument("--tflops", type=float, help="TFLOP/s of fp32 products, likewise")
    parser.add_argument("--dry-run", action="store_true", help="tiny models")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
