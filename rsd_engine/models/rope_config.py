"""The angles by which a model rotates its heads: the rope part of its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.schemas import MAX_POSITIONS, RopeSchema
from rsd_kernels.rope.tables import rope_tables

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one model; fields that a type does not use keep their defaults.

    Types: "default" (Su et al., 2021), "linear" (position interpolation, Chen et al., 2023),
    "llama3" (Llama 3.1 release), "yarn" (Peng et al., 2023; static, as transformers does it),
    "longrope" (Ding et al., 2024; one set of factors for the whole life of a model), and "none",
    of layers that do not rotate.
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
    attention_factor: float = 1.0  # yarn, longrope: multiplies cosines and sines
    short_factor: tuple[float, ...] = ()  # longrope: up to the original length
    long_factor: tuple[float, ...] = ()  # longrope: for longer contexts
    rotated: float = 1.0  # part of each head that is rotated, the first dimensions
    frequency_factors: tuple[float, ...] = ()  # GGUF: a divisor for each pair of dimensions

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RopeConfig:
        """Reads `rope_theta` and `rope_scaling`, or `rope_parameters`, of a config.json.

        Raises:
            ValueError: a field is not what `RopeSchema` allows, the type is not one of
                `ROPE_TYPES`, or one of its numbers is missing.
        """
        name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
        scaling = RopeSchema.read(raw.get(name) or {}, f"config.json: {name}")
        nested = [key for key, value in scaling.items() if isinstance(value, dict)]
        if nested:
            raise ValueError(f"{name} has parts for {', '.join(nested)}; only one is supported")
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in ROPE_TYPES:
            raise ValueError(f"rope type {kind!r} is not supported; one of {', '.join(ROPE_TYPES)}")
        rope = cls(
            type=kind,
            theta=float(scaling.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            rotated=float(
                scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
            ),
            **_FIELDS[kind](scaling, raw),
        )
        if rope.high_freq_factor <= rope.low_freq_factor:
            raise ValueError(
                f"{name}: high_freq_factor={rope.high_freq_factor} must be above "
                f"low_freq_factor={rope.low_freq_factor}"
            )
        return rope

    def context(self, max_position: int) -> int:
        """The positions of a model whose config says `max_position`.

        Yarn and linear scaling stretch the context that the model was first trained on by their
        factor; configs give it as the original, or as `max_position`.

        Raises:
            ValueError: there are more than `MAX_POSITIONS`.
        """
        if self.type not in ("yarn", "linear"):
            return max_position
        scaled = int((self.original_max_position or max_position) * self.factor)
        if not 2 <= scaled <= MAX_POSITIONS:
            raise ValueError(
                f"rope scaling to {scaled} positions is not supported; at most {MAX_POSITIONS}"
            )
        return scaled

    def rotated_dims(self, head_dim: int) -> int:
        """How many dimensions of a head are rotated.

        Raises:
            ValueError: they are not an even number of 2 or more and at most all, or the factors of
                longrope are not one for each pair of them.
        """
        count = int(head_dim * self.rotated)
        if count % 2 or not 2 <= count <= head_dim:
            raise ValueError(
                f"partial_rotary_factor={self.rotated} rotates {count} dimensions of "
                f"head_dim={head_dim}; it must be an even number of them, 2 to {head_dim}"
            )
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if self.type == "longrope" and len(factors) != count // 2:
                raise ValueError(
                    f"{name} of rope type 'longrope' has {len(factors)} entries; "
                    f"it must have {count // 2}, one for each pair of rotated dimensions"
                )
        return count

    def factors_for(self, num_positions: int) -> str:
        """Which factors of longrope a context of this length takes, "short" or "long"."""
        return "long" if num_positions > self.original_max_position else "short"

    def tables(self, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines, see `rope_tables`, for a context of `num_positions`."""
        inv_freq = self.inv_freq(head_dim, num_positions)
        # What does not turn is not scaled either.
        scale = torch.where(inv_freq == 0, 1.0, self.attention_factor)
        return rope_tables(inv_freq, num_positions, scale)

    def inv_freq(self, head_dim: int, num_positions: int = 0) -> Tensor:
        """[head_dim / 2] fp32 on the CPU: what a position adds to the angle of each pair.

        0 for pairs that are not rotated: the last, where only a part of a head is.

        num_positions: the context the model is to read, which chooses the factors of longrope.
        """
        if self.type == "none":
            return torch.zeros(head_dim // 2)
        rotated = self.rotated_dims(head_dim)
        found = self._inv_freq(rotated, num_positions)
        return torch.cat((found, torch.zeros((head_dim - rotated) // 2)))

    def _inv_freq(self, head_dim: int, num_positions: int) -> Tensor:
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        plain = 1.0 / (self.theta**exponent)
        if self.type == "longrope":
            long = self.factors_for(num_positions) == "long"
            return plain / torch.tensor(self.long_factor if long else self.short_factor)
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


NO_ROPE = RopeConfig(type="none")

_Raw = Mapping[str, Any]


def _default(scaling: _Raw, raw: _Raw) -> dict[str, Any]:
    return {"frequency_factors": tuple(map(float, scaling.get("frequency_factors") or ()))}


def _linear(scaling: _Raw, raw: _Raw) -> dict[str, Any]:
    original = scaling.get("original_max_position_embeddings") or 0
    return {"factor": _need(scaling, "factor"), "original_max_position": original}


def _llama3(scaling: _Raw, raw: _Raw) -> dict[str, Any]:
    return {
        "factor": _need(scaling, "factor"),
        "original_max_position": _need(scaling, "original_max_position_embeddings"),
        "low_freq_factor": _need(scaling, "low_freq_factor"),
        "high_freq_factor": _need(scaling, "high_freq_factor"),
    }


def _yarn(scaling: _Raw, raw: _Raw) -> dict[str, Any]:
    original = scaling.get("original_max_position_embeddings") or raw["max_position_embeddings"]
    factor, truncate = _need(scaling, "factor"), scaling.get("truncate")
    return {
        "factor": factor,
        "original_max_position": original,
        "beta_fast": scaling.get("beta_fast") or 32.0,
        "beta_slow": scaling.get("beta_slow") or 1.0,
        "truncate": True if truncate is None else truncate,
        "attention_factor": _yarn_attention_factor(scaling, factor),
    }


def _longrope(scaling: _Raw, raw: _Raw) -> dict[str, Any]:
    original = _need(scaling, "original_max_position_embeddings")
    factor = scaling.get("factor") or raw["max_position_embeddings"] / original
    attention = scaling.get("attention_factor")
    if attention is None:
        stretched = factor > 1 and original > 1
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if stretched else 1.0
    return {
        "original_max_position": original,
        "attention_factor": float(attention),
        "short_factor": tuple(map(float, _need(scaling, "short_factor"))),
        "long_factor": tuple(map(float, _need(scaling, "long_factor"))),
    }


_FIELDS = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _need(scaling: _Raw, name: str) -> Any:
    if scaling.get(name) is None:
        kind = scaling.get("rope_type") or scaling.get("type")
        raise ValueError(f"rope type {kind!r} needs {name!r}, which the config does not give")
    return scaling[name]


def _yarn_attention_factor(scaling: _Raw, factor: float) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    upper, lower = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if upper and lower:
        return mscale(float(upper)) / mscale(float(lower))
    return mscale(1.0)
