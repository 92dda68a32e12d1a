"""Acceptance policies: the weighting functions of the RSD paper, as users write them.

A policy is plain frozen data. The device reads its `columns` from the request's slot, so requests
of one batch may use different policies. To add one: a kind and its formula in
`rsd_kernels.policy.formula`, the same in `rsd_kernels.policy.kernel`, and a class here.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import ClassVar

from rsd_engine.arguments import shown
from rsd_engine.steps.text_form import Numbers, form_of, parse_form
from rsd_kernels.policy.formula import PolicyKind, accept_probability

__all__ = ["Clip", "Constant", "Logistic", "Policy", "Sigmoidal", "Threshold"]


@dataclass(frozen=True)
class Policy(Numbers):
    """One of the policies below. Source: Liao et al., ICML 2025, Table 1.

    A subclass names its `kind`; its fields, at most two, are the formula's a and b.
    """

    kind: ClassVar[PolicyKind]

    def weight(self, reward: float) -> float:
        """The probability in [0, 1] to keep a step of this reward; 0 for NaN, a step unscored."""
        return accept_probability(*self.columns(), reward)

    def columns(self) -> tuple[int, float, float]:
        """What the device reads: kind, a, b."""
        a, b, *_ = (*map(float, astuple(self)), 0.0, 0.0)
        return (int(self.kind), a, b)


@dataclass(frozen=True)
class Constant(Policy):
    """Keep every step with probability `p`, whatever its reward.

    Raises:
        ValueError: `p` is not a number in [0, 1].
    """

    kind = PolicyKind.CONSTANT
    p: float

    def __post_init__(self) -> None:
        self._check("p", 0.0, 1.0, "in [0, 1]")


@dataclass(frozen=True)
class Threshold(Policy):
    """Keep a step when its reward is at least `threshold`: the paper's binary step function.

    Rewards lie in [0, 1], so a threshold above 1 rejects every step and one at or below 0 keeps
    every step. Compared in float32, as on the device.

    Raises:
        ValueError: `threshold` is neither infinite nor a number that float32 holds.
    """

    kind = PolicyKind.THRESHOLD
    threshold: float = 0.7

    def __post_init__(self) -> None:
        self._check_bound("threshold")


@dataclass(frozen=True)
class Clip(Policy):
    """Keep a step with its reward as the probability: min(1, max(0, r))."""

    kind = PolicyKind.CLIP


@dataclass(frozen=True)
class Sigmoidal(Policy):
    """max(0, r / (1 + r)): at most one half for rewards up to 1; 0 for rewards below 0."""

    kind = PolicyKind.SIGMOIDAL


@dataclass(frozen=True)
class Logistic(Policy):
    """1 / (1 + exp(-alpha (r - threshold))): a soft threshold, steeper for larger `alpha`.

    Raises:
        ValueError: `alpha` is not in [1e-6, 1e6], or float32 does not hold `threshold`.
    """

    kind = PolicyKind.LOGISTIC
    alpha: float
    threshold: float

    def __post_init__(self) -> None:
        self._check("alpha", 1e-6, 1e6, "in [1e-6, 1e6]")
        self._check_float32("threshold")


_POLICIES = {policy.kind.name.lower(): policy for policy in Policy.__subclasses__()}
POLICY_FORMS = ", ".join(map(form_of, _POLICIES.values()))
"""How each policy is written on a command line: `constant:p, threshold[:threshold], ...`."""


def check_policy(value: object) -> None:
    """Raises ValueError unless `value` is a policy, not its class, a name or a number."""
    if type(value) not in _POLICIES.values():
        raise ValueError(
            "policy must be one of rsd_engine's policies, such as Threshold(0.7), "
            f"got {shown(value)}"
        )


def parse_policy(text: str) -> Policy:
    """The policy written as `name` or `name:number[:number]`, as on a command line.

    Raises:
        ValueError: the name is unknown, a number is missing, too many or out of its range.
    """
    return parse_form("policy", _POLICIES, text)
