"""First contact with a GPU, in at most four minutes.

    python -m bench.gpu.first --archive first.tar.gz --commit COMMIT
    python -m bench.gpu.first --dry-run          # all of it on a CPU, in tiny sizes

The device, and whether the cache of kernels fits it; what conditional nodes can do; all executors
on the demo family; decoding with whole models; the time of every kernel, and the gap before it;
hardware counters; loop ops; last the device loop with kernels that start early, which may hang.
Each part is a process with a time limit of its own, and none stops the others. Kernels are compiled
before, on all cores, only where the cache of them does not fit. `bench.gpu` goes on from the folder
that this leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.gpu.parts import build_parts, first_parts
from bench.gpu.series import RESULTS, Series, add_options
from bench.lib.options import NO_GPU, command_parser

_BUDGET = 225


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu.first", __doc__)
    names = [part.name for part in (*build_parts(False, True), *first_parts())]
    add_options(parser, names, _BUDGET)
    parser.set_defaults(output=RESULTS / "first")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    series = Series("gpu.first", options)
    fits = options.dry_run or series.cache["fits"]
    for part in (*build_parts(fits, library_loads=True), *first_parts()):
        series.run(part)
    return series.end({})


if __name__ == "__main__":
    raise SystemExit(main())
