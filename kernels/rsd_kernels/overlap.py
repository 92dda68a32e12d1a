"""Kernels that start while the one before them still runs (programmatic dependent launch, sm_90).

A kernel launched with `Launch.overlap` may be put on the device as soon as every program of the
kernel before it has called `allow_next_kernel` or ended. Why that changes no result:

- Before `wait_for_previous_kernel` a program writes nothing. It may prefetch anything into the L2
  cache: the whole device shares that cache, so later writes are seen. It reads nothing, except for
  what `schedule` wrote for this pass where the launcher is told `scheduled`: the embedding is
  launched plainly, so it begins after `schedule` has ended, and the kernels behind it begin later.
- The wait returns when the kernel before has ended and what it wrote can be seen. Only that kernel
  is waited for; but each of its own programs has waited before it ended, those without work too, so
  what came earlier has ended as well, and so on back to a kernel launched plainly, which began when
  everything before it had ended. So no kernel reads too early, and none overwrites what an earlier
  one still reads.
- A kernel launched plainly behind one of these starts when that one has ended, as ever.

Every program must therefore call both functions, the wait before its first return. PTX ISA,
griddepcontrol; the same is done in `csrc/launch.cuh`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# What one address brings into the L2 cache, on Hopper (so NVIDIA's CCCL says, which does the same).
LINE_BYTES = tl.constexpr(128)


@triton.jit
def allow_next_kernel(OVERLAP: tl.constexpr) -> None:
    """Lets the next kernel of the stream be put on the device now, if it is launched to overlap."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous_kernel(OVERLAP: tl.constexpr) -> None:
    """Returns when the kernel before has ended and its writes are visible."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def prefetch(
    pointers: tl.tensor,  # any shape; valid addresses
) -> None:
    """Asks the L2 cache for what lies at every address; nothing is read."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [pointers.to(tl.uint64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_vector(
    vector: tl.tensor,  # [SIZE]
    SIZE: tl.constexpr,
) -> None:
    """Asks the L2 cache for a vector of a few KiB."""
    STEP: tl.constexpr = LINE_BYTES // (vector.dtype.element_ty.primitive_bitwidth // 8)
    o = tl.arange(0, triton.next_power_of_2(triton.cdiv(SIZE, STEP))) * STEP
    prefetch(vector + tl.minimum(o, SIZE - 1))


@triton.jit
def prefetch_rows(
    rows: tl.tensor,  # [N] pointers
    SIZE: tl.constexpr,  # elements of a row
) -> None:
    """Asks the L2 cache for short rows, wherever they lie."""
    STEP: tl.constexpr = LINE_BYTES // (rows.dtype.element_ty.primitive_bitwidth // 8)
    o = tl.arange(0, triton.next_power_of_2(triton.cdiv(SIZE, STEP))) * STEP
    prefetch(rows[:, None] + tl.minimum(o, SIZE - 1)[None, :])
