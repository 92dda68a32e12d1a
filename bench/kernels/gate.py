"""The gate before a kernel is timed: its error against float64, compared with PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.lib.timing import Mismatch

# The error of a kernel may be this multiple of that of PyTorch in the same dtype.
ALLOWED = 2.0


@dataclass(frozen=True)
class Errors:
    """Largest errors against float64."""

    kernel: float
    torch: float


def require_close(
    result: Tensor, plain: Tensor, exact: Tensor, what: str, *, num_terms: int = 1
) -> Errors:
    """The kernel's largest error must be at most twice that of PyTorch in the same dtype.

    PyTorch may be exact by chance. So the error of one rounding to the dtype, or of an fp32 sum of
    `num_terms` terms, is always allowed.

    Args:
        result: of the kernel.
        plain: of PyTorch in the same dtype.
        exact: of PyTorch in float64.
        what: name of the case, for the message.
        num_terms: number of terms of the longest sum.

    Raises:
        Mismatch: the kernel is worse, or a result is not finite.
    """
    if result.shape != exact.shape:
        raise Mismatch(f"{what}: shape {list(result.shape)}, it must be {list(exact.shape)}")
    if not bool(result.isfinite().all()):
        raise Mismatch(f"{what}: a result is not finite")
    errors = Errors(_largest(result, exact), _largest(plain, exact))
    summing = torch.finfo(torch.float32).eps * num_terms**0.5
    floor = max(torch.finfo(result.dtype).eps, summing) * exact.abs().max().item()
    if errors.kernel > max(ALLOWED * errors.torch, floor):
        raise Mismatch(
            f"{what}: error {errors.kernel:.3g} against float64, PyTorch has {errors.torch:.3g}"
        )
    return errors


def require_equal(results: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    """Both must hold exactly the same values.

    Raises:
        Mismatch: naming the tensors that differ.
    """
    wrong = [name for name in wanted if not torch.equal(results[name].cpu(), wanted[name].cpu())]
    if wrong:
        raise Mismatch(f"{what}: {', '.join(wrong)} differ from the twin")


def _largest(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())
