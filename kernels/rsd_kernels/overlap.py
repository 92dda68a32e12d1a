"""Kernels that start while the previous one still runs (programmatic dependent launch, sm_90).

A kernel launched with `Launch.overlap` may start as soon as every program of the previous kernel
has called `allow_next_kernel` or ended. Why no result changes:

- Before `wait_for_previous_kernel` a program writes nothing. It may prefetch anything into the L2
  cache, which the whole device shares, so later writes are seen. It reads nothing, except, where
  its launcher is told `scheduled`, what `schedule` wrote for this pass: `embed`, the first kernel
  of a pass, is launched plainly, so it begins after `schedule` has ended, and all others later.
- The wait returns when the previous kernel has ended and its writes are visible. That kernel's
  programs, those without work too, have all waited for the kernel before it, and so on back to one
  launched plainly, which began when everything before it had ended. So no kernel reads too early,
  and none overwrites what an earlier one still reads.
- A kernel launched plainly after one of these starts when that one has ended, as usual.

Every program must therefore call both functions, and wait before its first return. One that loops
over tiles allows the next kernel at its last tile: weights that were prefetched much earlier would
be evicted by those that it reads itself. Source: PTX ISA, griddepcontrol. `csrc/launch.cuh` does
the same in CUDA.

`prefetch_ahead` does not depend on any of this: also where no kernel starts early, a program that
has done its work may ask for what a later kernel reads.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Bytes that prefetching one address brings into the L2 cache on Hopper (source: NVIDIA's CCCL).
LINE_BYTES = tl.constexpr(128)


@triton.jit
def allow_next_kernel(OVERLAP: tl.constexpr) -> None:
    """Lets the next kernel of the stream start now, if it is launched to overlap."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous_kernel(OVERLAP: tl.constexpr) -> None:
    """Returns when the previous kernel has ended and its writes are visible."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def prefetch(
    pointers: tl.tensor,  # any shape; valid addresses
) -> None:
    """Brings what lies at every address into the L2 cache; nothing is read."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [pointers.to(tl.uint64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_ahead(
    matrix: tl.tensor,  # contiguous: what a later kernel reads first
    num_lines: tl.tensor,  # of it, of LINE_BYTES each
    i_program: tl.tensor,
    num_programs: tl.tensor,
) -> None:
    """Brings this program's share of the beginning of a matrix into the L2 cache.

    For a program that has done its work. Memory would idle from then until the next kernel reads:
    while the last programs end, and the next kernel starts. Nothing waits for what is asked for.
    """
    LINE: tl.constexpr = LINE_BYTES // (matrix.dtype.element_ty.primitive_bitwidth // 8)
    LINES: tl.constexpr = 128  # one for every thread of four warps
    for i_line in range(i_program * LINES, num_lines, num_programs * LINES):
        o_line = tl.minimum(i_line + tl.arange(0, LINES), num_lines - 1)
        prefetch(matrix + o_line.to(tl.int64) * LINE)


@triton.jit
def prefetch_vector(
    vector: tl.tensor,  # [SIZE]
    SIZE: tl.constexpr,
) -> None:
    """Brings a vector of a few KiB into the L2 cache."""
    STEP: tl.constexpr = LINE_BYTES // (vector.dtype.element_ty.primitive_bitwidth // 8)
    o = tl.arange(0, triton.next_power_of_2(triton.cdiv(SIZE, STEP))) * STEP
    prefetch(vector + tl.minimum(o, SIZE - 1))


@triton.jit
def prefetch_rows(
    rows: tl.tensor,  # [N] pointers
    SIZE: tl.constexpr,  # elements of a row
) -> None:
    """Brings short rows, wherever they lie, into the L2 cache."""
    STEP: tl.constexpr = LINE_BYTES // (rows.dtype.element_ty.primitive_bitwidth // 8)
    o = tl.arange(0, triton.next_power_of_2(triton.cdiv(SIZE, STEP))) * STEP
    prefetch(rows[:, None] + tl.minimum(o, SIZE - 1)[None, :])
