"""How sure an accuracy is, and whether two methods differ (scipy)."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_engine.evaluate.missing import needs_package

_LEVEL = 0.95
_RESAMPLES = 2000  # of a bootstrap


def require_scipy() -> None:
    """Raises ImportError, with what to install, if scipy is not there."""
    with needs_package("scipy", "eval"):
        import scipy.stats  # noqa: F401


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share; (0, 1) of nothing.

    Raises:
        ImportError: scipy is not installed.
    """
    if not total:
        return 0.0, 1.0
    with needs_package("scipy", "eval"):
        from scipy.stats import binomtest
    found = binomtest(right, total).proportion_ci(_LEVEL, method="wilson")
    return float(found.low), float(found.high)


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p-value of McNemar's test: whether two methods are equally often right.

    Args:
        better: questions that the first is right on and the second is not.
        worse: the other way round.

    Raises:
        ImportError: scipy is not installed.
    """
    if not better + worse:
        return 1.0
    with needs_package("scipy", "eval"):
        from scipy.stats import binomtest
    return float(binomtest(better, better + worse, 0.5).pvalue)


def ratio_interval(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of sum(parts) / sum(wholes), by bootstrap over the pairs.

    Returns (0, 1) for fewer than two pairs. The draws are the same in every call.

    Raises:
        ImportError: scipy is not installed.
    """
    if len(parts) < 2:
        return 0.0, 1.0
    with needs_package("scipy", "eval"):
        from scipy.stats import bootstrap
    found = bootstrap(
        (parts, wholes),
        lambda part, whole, axis: part.sum(axis) / whole.sum(axis),
        paired=True,
        confidence_level=_LEVEL,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=0,
    ).confidence_interval
    return float(found.low), float(found.high)
