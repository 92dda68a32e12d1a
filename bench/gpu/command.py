"""Everything that needs a GPU and that first contact has left: tests and benchmarks.

    python -m bench.gpu --first gpu-results/first --archive second.tar.gz [--budget 400]
    python -m bench.gpu --dry-run          # all of it on a CPU, in tiny sizes

What `bench.gpu.first` has found for this commit and device is not run again; kernels start early
where that has been proven to be right and faster. Executors are checked first, four slots before
others; then what the bars need, then the rest. Every part is a process with a time limit. A second
call runs only those parts that have not passed yet. The end is a table of the bars
(`bench.gpu.bars`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bench.gpu.parts import build_parts, first_parts, second_parts
from bench.gpu.runner import read_json
from bench.gpu.series import RESULTS, Series, add_options
from bench.lib.options import NO_GPU, command_parser
from rsd_kernels.cuda import library as cuda_library

_BUDGET = 400


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu", __doc__)
    names = [part.name for part in (*build_parts(False, False), *second_parts({}))]
    add_options(parser, names, _BUDGET)
    parser.set_defaults(output=RESULTS / "second")
    parser.add_argument(
        "--first", type=Path, default=RESULTS / "first", help="folder that bench.gpu.first has left"
    )
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    series = Series("gpu", options, [options.first])
    fits = options.dry_run or series.cache["fits"]
    loads = options.dry_run or cuda_library.status().state == "loaded"
    found = {part.name: read_json(options.first / f"{part.name}.json") for part in first_parts()}
    parts = (*build_parts(fits, loads), *second_parts(found))
    for part in parts:
        series.run(part)
    known = {part.name: series.runner.known(part) for part in parts}
    return series.end({name: result["result"] for name, result in known.items() if result})
