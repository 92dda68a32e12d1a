"""The kernels of a decode step, beside PyTorch and the bandwidth of the memory they read.

    python -m bench.kernels [--only models]    # on a GPU
    python -m bench.kernels --dry-run          # the same on a CPU, in tiny sizes

Every op must first be about as exact as PyTorch, both compared with float64. Then it is timed
inside a CUDA graph, on data that no cache holds, beside PyTorch. Its bandwidth is given as a share
of that of a plain read in the same run. An op that is not exact enough is not timed; the others
are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bench.kernels import model_decode
from bench.kernels.attention_cases import attention_case, small_cases
from bench.kernels.projection_cases import Case, fused_case, matrices, product_case
from bench.kernels.setting import REAL, Setting
from bench.lib import report
from bench.lib.options import NO_GPU, command_parser
from bench.lib.report import FailureLog
from bench.lib.timing import alternate_calls
from rsd_engine.roofline.measured import read_bandwidth
from rsd_kernels.aot.launches import DecoderShape
from rsd_kernels.cuda import library as cuda_library

PARTS = ("models", "ops")
_IMPLEMENTATIONS = ("ours", "cuda", "cuda, overlapped")
_MODEL_COLUMNS = {
    "ours": "ours",
    "ours, nothing ahead": "nothing ahead",
    "ours, 16 MB ahead": "16 MB ahead",
    "ours, a program a tile": "a program a tile",
    "ours, qkv in two launches": "qkv in two",
    "ours, CUDA products": "CUDA products",
    "ours, launched by the host": "by the host",
    "torch ops": "torch ops",
}


def cases(setting: Setting, shape: DecoderShape) -> Iterator[Case]:
    """Yields one case at a time, so that the memory of one is free for the next."""
    for matrix in matrices(setting, shape):
        for num_rows in setting.rows:
            yield product_case(setting, matrix, num_rows)
            yield fused_case(setting, matrix, num_rows)
    for num_rows in setting.rows:
        yield attention_case(setting, shape, num_rows)
        yield from small_cases(setting, shape, num_rows)


def measure(case: Case, setting: Setting, bandwidth: float) -> dict[str, Any]:
    """The gate, then all contenders in alternation.

    Raises:
        Mismatch: an implementation is not exact enough.
    """
    errors = case.gate()
    timings = alternate_calls(
        case.contenders, device=setting.device, copies=case.copies, runs=setting.runs
    )
    median = {name: timing.median for name, timing in timings.items()}
    return {
        "op": case.op,
        "rows": case.num_rows,
        "num_bytes": case.num_bytes,
        "us": {name: 1e6 * seconds for name, seconds in median.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "share_of_bandwidth": {
            name: case.num_bytes / bandwidth / seconds for name, seconds in median.items()
        },
        "error": {name: e.kernel for name, e in errors.items()},
        "error_of_torch": max(e.torch for e in errors.values()),
    }


def winners(measured: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Our fastest implementation of each product, by matrix and number of rows."""
    found = {}
    for entry in measured:
        if "torch.mm" in entry["us"]:
            of_ours = {name: us for name, us in entry["us"].items() if name in _IMPLEMENTATIONS}
            found[f"{entry['op']}, {entry['rows']} rows"] = min(of_ours, key=of_ours.__getitem__)
    return found


def table(measured: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            f"{entry['op']}: {name}",
            str(entry["rows"]),
            f"{us:.2f}",
            f"{100 * entry['spread'][name]:.0f} %",
            f"{entry['num_bytes'] / us / 1e3:.0f}",
            f"{100 * entry['share_of_bandwidth'][name]:.0f} %",
        ]
        for entry in measured
        for name, us in entry["us"].items()
    ]
    return report.format_table(["op", "rows", "us", "spread", "GB/s", "of read"], rows)


def model_table(decoded: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            name,
            f"{entry['ceiling_us']:.0f}",
            *(f"{entry['us'][who]:.0f}" if who in entry["us"] else "-" for who in _MODEL_COLUMNS),
            f"{100 * entry['share_of_bandwidth']:.0f} %",
            f"{entry['tokens_per_second']:.0f}",
        ]
        for name, entry in decoded.items()
    ]
    headers = ["whole model, one row", "limit us", *_MODEL_COLUMNS.values(), "of read", "tokens/s"]
    return report.format_table(headers, rows)


def early_lines(name: str, early: dict[str, Any]) -> list[str]:
    """How much faster kernels are that start early, by how many weights they prefetch."""
    timed = [
        f"{name}: {variant}: {times:.3f} times as fast as plain, "
        f"{100 * early['share_of_bandwidth'][variant]:.0f} % of read"
        for variant, times in early["times_faster"].items()
    ]
    refused = [f"{name}: {variant}: not timed, {why}" for variant, why in early["refused"].items()]
    return timed + refused


def run(setting: Setting, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """What is asked for: what the bars need first, what may leave the device in a bad state last.

    A line of JSON is printed after each model, in case the run is stopped or the device is lost.
    """
    bandwidth = read_bandwidth(setting.device, None if setting.runs > 2 else 2**24)
    print(f"ceiling: {bandwidth / 1e9:.0f} GB/s read from memory; CUDA library: "
          f"{cuda_library.status()}\n")  # fmt: skip
    failures = FailureLog()
    result: dict[str, Any] = {
        "bench": "kernels", "dtype": str(setting.dtype), "bandwidth_bytes_per_second": bandwidth,
        "whole_model": {}, "ops": {}, "winners": {}, "early": {}, "failed": failures.messages,
    }  # fmt: skip
    shapes = setting.shapes.items()
    if "models" in parts:
        for name, shape in shapes:
            plain = partial(model_decode.measure, setting, shape, 1, bandwidth)
            decoded = failures.run_each([(name, plain)])
            result["whole_model"] |= decoded
            failures.messages += [f"{name}: {d['wrong']}" for d in decoded.values() if d["wrong"]]
            print(model_table(decoded))
            report.print_json(result)
    if "ops" in parts:
        for name, shape in shapes:
            measured = _measure_ops(failures, name, shape, setting, bandwidth)
            result["ops"][name] = measured
            result["winners"][name] = winners(measured)
            report.print_json(result)
    if "models" in parts:
        for name, shape in shapes:
            early = partial(model_decode.measure_early, setting, shape, 1, bandwidth)
            result["early"] |= failures.run_each([(f"{name}, early", early)])
            report.print_json(result)
        for name, found in result["early"].items():
            print(*early_lines(name, found), sep="\n", flush=True)
    return result


def _measure_ops(
    failures: FailureLog, name: str, shape: DecoderShape, setting: Setting, bandwidth: float
) -> list[dict[str, Any]]:
    """Measures every op of one model, and prints the table."""
    entries = failures.run_each(
        (f"{name}, {case.op}, {case.num_rows} rows", partial(measure, case, setting, bandwidth))
        for case in cases(setting, shape)
    )
    measured = list(entries.values())
    print(f"\n{name}, {setting.context} tokens of context, {setting.dtype}")
    print(table(measured), flush=True)
    print("\nfastest of ours: " + "; ".join(f"{k}: {v}" for k, v in winners(measured).items()))
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("kernels", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="run tiny sizes on a CPU")
    parser.add_argument("--models", nargs="+", choices=sorted(REAL), default=list(REAL))
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each contender")
    parser.add_argument("--only", choices=PARTS, help="whole models, or op by op")
    options = parser.parse_args(arguments)
    parts = PARTS if options.only is None else (options.only,)
    if options.dry_run:
        report.print_json_or_fail(run(Setting.tiny(), parts))
        return 0
    if not torch.cuda.is_available():
        parser.error(NO_GPU)
    shapes = {name: REAL[name] for name in options.models}
    report.print_json_or_fail(run(Setting.real(shapes, options.runs), parts))
    return 0
