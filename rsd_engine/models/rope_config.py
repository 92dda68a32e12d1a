"""The angles by which a model rotates its heads: the rope part of its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one model; fields that a type does not use keep their defaults.

    Types: "default" (Su et al., 2021), "linear" (position interpolation, Chen et al., 2023),
    "llama3" (Llama 3.1 release), "yarn" (Peng et al., 2023; static, as transformers does it).
    """

    theta: float = 10000.0
    type: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # yarn: multiplies cosines and sines
    frequency_factors: tuple[float, ...] = ()  # GGUF: a divisor for each pair of dimensions

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RopeConfig:
        """Reads `rope_theta` and `rope_scaling`, or `rope_parameters`, of a config.json.

        Raises:
            ValueError: the type is not one of `ROPE_TYPES`, one of its numbers is missing, or only
                a part of each head is rotated.
        """
        scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        theta = float(scaling.get("rope_theta", raw.get("rope_theta", 10000.0)))
        rotated = scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor")) or 1.0
        if float(rotated) != 1.0:
            raise ValueError(f"partial_rotary_factor={rotated} is not supported; only 1")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ROPE_TYPES:
            raise ValueError(f"rope type {kind!r} is not supported; one of {', '.join(ROPE_TYPES)}")
        if kind == "default":
            factors = tuple(float(value) for value in scaling.get("frequency_factors") or ())
            return cls(theta=theta, frequency_factors=factors)
        factor = float(_need(scaling, kind, "factor"))
        if kind == "linear":
            return cls(theta=theta, type=kind, factor=factor)
        if kind == "llama3":
            return cls(
                theta=theta,
                type=kind,
                factor=factor,
                original_max_position=int(_need(scaling, kind, "original_max_position_embeddings")),
                low_freq_factor=float(_need(scaling, kind, "low_freq_factor")),
                high_freq_factor=float(_need(scaling, kind, "high_freq_factor")),
            )
        return cls._yarn(scaling, theta, factor, int(raw["max_position_embeddings"]))

    @classmethod
    def _yarn(
        cls, scaling: Mapping[str, Any], theta: float, factor: float, max_position: int
    ) -> RopeConfig:
        original = scaling.get("original_max_position_embeddings") or max_position
        return cls(
            theta=theta,
            type="yarn",
            factor=factor,
            original_max_position=int(original),
            beta_fast=float(scaling.get("beta_fast") or 32.0),
            beta_slow=float(scaling.get("beta_slow") or 1.0),
            truncate=bool(scaling.get("truncate", True)),
            attention_factor=_yarn_attention_factor(scaling, factor),
        )

    def inv_freq(self, head_dim: int) -> Tensor:
        """[head_dim / 2] fp32 on the CPU: what a position adds to the angle of each pair."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        plain = 1.0 / (self.theta**exponent)
        if self.type == "linear":
            return plain / self.factor
        if self.type == "llama3":
            return self._llama3(plain)
        if self.type == "yarn":
            return self._yarn_inv_freq(plain, head_dim)
        return plain / torch.tensor(self.frequency_factors) if self.frequency_factors else plain

    def _llama3(self, plain: Tensor) -> Tensor:
        """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
        wavelength = 2 * math.pi / plain
        turns = self.original_max_position / wavelength
        width = self.high_freq_factor - self.low_freq_factor
        smooth = ((turns - self.low_freq_factor) / width).clamp(0.0, 1.0)
        return (1 - smooth) * plain / self.factor + smooth * plain

    def _yarn_inv_freq(self, plain: Tensor, head_dim: int) -> Tensor:
        """Fast dimensions keep their angle, slow ones are interpolated, with a ramp between."""

        def dimension(turns: float) -> float:
            span = self.original_max_position / (turns * 2 * math.pi)
            return head_dim * math.log(span) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low if high != low else 0.001
        ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)


def _need(scaling: Mapping[str, Any], kind: str, name: str) -> Any:
    if scaling.get(name) is None:
        raise ValueError(f"rope type {kind!r} needs {name!r}, which the config does not give")
    return scaling[name]


def _yarn_attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    upper, lower = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if upper and lower:
        return mscale(float(upper)) / mscale(float(lower))
    return mscale(1.0)
