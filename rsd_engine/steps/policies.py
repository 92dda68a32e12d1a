"""The weighting functions of the RSD paper: from the reward of a step to the chance to keep it.

Each policy is plain frozen data. The host asks `weight`; the device reads `columns`, which stand in
the row of the slot, so requests of one batch may use different policies.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

from rsd_kernels.policy.formula import PolicyKind

PolicyColumns = tuple[int, float, float]  # kind, a, b


@dataclass(frozen=True)
class Constant:
    """Keep every step with probability `p`, whatever its reward.

    Raises:
        ValueError: `p` is not a number in [0, 1].
    """

    p: float

    def __post_init__(self) -> None:
        _check_number("p", self.p)
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"p = {self.p!r}: must lie in [0, 1]")

    def weight(self, reward: float) -> float:
        return 0.0 if math.isnan(reward) else float(self.p)

    def columns(self) -> PolicyColumns:
        return (int(PolicyKind.CONSTANT), float(self.p), 0.0)


@dataclass(frozen=True)
class Threshold:
    """Keep a step when its reward is at least `threshold`: the paper's binary step function.

    Rewards lie in [0, 1], so a threshold above 1 rejects every step and one at or below 0 keeps
    every step. Compared in float32, as on the device.

    Raises:
        ValueError: `threshold` is not a number.
    """

    threshold: float = 0.7

    def __post_init__(self) -> None:
        _check_number("threshold", self.threshold)

    def weight(self, reward: float) -> float:
        return float(_float32(reward) >= _float32(self.threshold))

    def columns(self) -> PolicyColumns:
        return (int(PolicyKind.THRESHOLD), float(self.threshold), 0.0)


@dataclass(frozen=True)
class Clip:
    """Keep a step with its reward as the probability: min(1, max(0, r))."""

    def weight(self, reward: float) -> float:
        return 0.0 if math.isnan(reward) else min(1.0, max(0.0, reward))

    def columns(self) -> PolicyColumns:
        return (int(PolicyKind.CLIP), 0.0, 0.0)


@dataclass(frozen=True)
class Sigmoidal:
    """max(0, r / (1 + r)): at most one half for rewards up to 1; 0 for rewards below 0."""

    def weight(self, reward: float) -> float:
        # 1 / (1 + 1/r) is r / (1 + r) without inf / inf; NaN fails the comparison.
        return 1.0 / (1.0 + 1.0 / reward) if reward > 0.0 else 0.0

    def columns(self) -> PolicyColumns:
        return (int(PolicyKind.SIGMOIDAL), 0.0, 0.0)


@dataclass(frozen=True)
class Logistic:
    """1 / (1 + exp(-alpha (r - threshold))): a soft threshold, steeper for larger `alpha`.

    Raises:
        ValueError: `alpha` is not finite and above 0, or `threshold` is not finite.
    """

    alpha: float
    threshold: float

    def __post_init__(self) -> None:
        _check_number("alpha", self.alpha)
        _check_number("threshold", self.threshold)
        if not (math.isfinite(self.alpha) and self.alpha > 0.0):
            raise ValueError(f"alpha = {self.alpha!r}: must be finite and above 0")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold = {self.threshold!r}: must be finite")

    def weight(self, reward: float) -> float:
        if math.isnan(reward):
            return 0.0
        x = self.alpha * (reward - self.threshold)
        if x >= 0.0:
            return 1.0 / (1.0 + math.exp(-x))
        return math.exp(x) / (1.0 + math.exp(x))  # exp(-x) would overflow

    def columns(self) -> PolicyColumns:
        return (int(PolicyKind.LOGISTIC), float(self.alpha), float(self.threshold))


Policy = Constant | Threshold | Clip | Sigmoidal | Logistic
"""Any of the five. `weight(reward)` is in [0, 1] (NaN gives 0: a step without a score is rejected);
`columns()` is what the device reads (`PolicyKind`, a, b). Source: RSD paper, Table 1."""


def check_policy(value: object) -> None:
    """Raises ValueError unless `value` is a policy, not its class, a name or a number."""
    if not isinstance(value, Policy):
        raise ValueError(
            f"policy must be one of rsd_engine's policies, such as Threshold(0.7), got {value!r}"
        )


_POLICIES: dict[str, type[Policy]] = {
    "constant": Constant,
    "threshold": Threshold,
    "clip": Clip,
    "sigmoidal": Sigmoidal,
    "logistic": Logistic,
}
_FORMS = "threshold[:d], constant:p, clip, sigmoidal, logistic:alpha:d"


def parse_policy(text: str) -> Policy:
    """The policy written as `name` or `name:number[:number]`, as on a command line.

    Raises:
        ValueError: the name is unknown, a number is missing, too many or out of its range.
    """
    name, *numbers = text.strip().split(":")
    if name not in _POLICIES:
        raise ValueError(f"policy = {text!r}: unknown; write one of {_FORMS}")
    try:
        arguments = [float(number) for number in numbers]
    except ValueError:
        raise ValueError(
            f"policy = {text!r}: what follows {name!r} must be numbers; write one of {_FORMS}"
        ) from None
    try:
        return _POLICIES[name](*arguments)
    except TypeError:
        raise ValueError(
            f"policy = {text!r}: wrong count of numbers; write one of {_FORMS}"
        ) from None
    except ValueError as error:
        raise ValueError(f"policy = {text!r}: {error}") from None


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


def _check_number(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or math.isnan(float(value)):  # type: ignore[arg-type]
        raise ValueError(f"{name} = {value!r}: must be a number")
