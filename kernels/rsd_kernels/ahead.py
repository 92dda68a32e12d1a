"""What a kernel whose work is done fetches into the L2 cache, for the products that come after it.

Memory would idle otherwise: while the last programs end, and until the next kernel's first weights
are on their way. No result depends on it. Kernels do it by `rsd_kernels.overlap.prefetch_ahead`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rsd_kernels.launch import interpreting
from rsd_kernels.linear.weight import ReadByProduct

LINE_BYTES = 128  # that a prefetch of one address brings (`rsd_kernels.overlap`)
# Fetched by a product, of the next one's weight: what memory delivers in the 1.4 us (H200) to 2 us
# (H100) until the next kernel's first weights are on their way. It is far less than the 50 MB of
# these caches, so it stays there until it is read.
AHEAD_BYTES = 6 * 2**20
# Fetched by attention in a decode pass, of the weight after the next (of gate and up): it reads
# little, and waits for one thing after another. What memory delivers in the 2 us in which its last
# programs combine what all have found, and the next kernel starts.
ATTENTION_AHEAD_BYTES = 8 * 2**20


def next_weight_args(weight: ReadByProduct) -> dict[str, Any]:
    """How much of which matrix a product fetches, as arguments of its kernel."""
    return ahead_args(weight.next_matrix, AHEAD_BYTES, weight.stored)


def ahead_args(matrix: Tensor | None, most: int, instead: Tensor) -> dict[str, Any]:
    """At most so many bytes of a matrix; nothing of None, for which another tensor stands."""
    if matrix is None or interpreting() or not matrix.is_contiguous():
        return {"ahead": instead, "ahead_lines": 0}
    return {"ahead": matrix, "ahead_lines": min(matrix.nbytes, most) // LINE_BYTES}
