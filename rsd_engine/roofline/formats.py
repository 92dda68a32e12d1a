"""Bits per weight of the formats that quantised checkpoints have, scales and zeros included."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class WeightFormat:
    """How the weights of a model are stored.

    Attributes:
        name: as on a command line.
        bits: of a weight in a layer, with its share of scales and zeros.
        whole: whether the embedding and the LM head have this format too. GGUF files quantise them;
            GPTQ, AWQ and fp8 checkpoints leave them as they are.
        instructions: of plain cores that a product on a GPU takes for a weight, to unpack it for
            the tensor cores; None: weights of this format are expanded on a GPU.
    """

    name: str
    bits: float
    whole: bool
    instructions: float | None = None

    @property
    def bytes_per_parameter(self) -> float:
        """Of a weight in a layer. Norms and biases, which are few, count as much."""
        return self.bits / 8


_GROUPED = re.compile(r"int(?P<bits>[48])(?:-g(?P<group>[1-9]\d{0,5})|(?P<all>-channel))?")
_GROUP = 128  # where a name has none
# Counted in the loops of products without a norm, as compiled for sm_90 for o and down of
# Qwen2.5-7B: instructions of a step times threads, over its weights. Zeros of their own add 2.2 in
# 4 bits, and act-order 4.3 more.
_INSTRUCTIONS = {"int4": 4.7, "int8": 5.9, "fp8": 5.8}


def _grouped(name: str) -> WeightFormat | None:
    """GPTQ and AWQ: a 16-bit scale and a zero of `bits` for each group of weights.

    "int4-g64" has groups of 64 inputs, "int4-channel" one of all, which takes no space to speak of.
    """
    found = _GROUPED.fullmatch(name)
    if found is None:
        return None
    bits, group = int(found["bits"]), int(found["group"] or _GROUP)
    shared = 0 if found["all"] else (16 + bits) / group
    return WeightFormat(name, bits + shared, whole=False, instructions=_INSTRUCTIONS[f"int{bits}"])


def _blocks(name: str, num_bytes: int, weights: int) -> WeightFormat:
    """GGUF: blocks of so many weights, with their scales (ggml-common.h of llama.cpp)."""
    return WeightFormat(name, 8 * num_bytes / weights, whole=True)


_ALL = (
    # e4m3 with a 32-bit scale for 128 x 128 weights, as DeepSeek-V3 and Qwen3 are published
    WeightFormat("fp8", 8 + 32 / 128**2, whole=False, instructions=_INSTRUCTIONS["fp8"]),
    _blocks("q8_0", 34, 32),
    _blocks("q6_k", 210, 256),
    _blocks("q5_k", 176, 256),
    _blocks("q5_1", 24, 32),
    _blocks("q5_0", 22, 32),
    _blocks("q4_k", 144, 256),
    _blocks("q4_1", 20, 32),
    _blocks("q4_0", 18, 32),
)
_FORMATS = {found.name: found for found in _ALL}


def find_format(name: str) -> WeightFormat:
    """A format by its name.

    Raises:
        ValueError: there is none of this name; the message lists those that are.
    """
    plain = name.strip().lower()
    found = _FORMATS.get(plain) or _grouped(plain)
    if found is None:
        fp8, *blocks = _FORMATS
        raise ValueError(
            f"quantization must be one of {fp8}, int8, int4, or such as int4-g64 for groups of 64 "
            f"(without it, {_GROUP}) and int4-channel for one group, {', '.join(blocks)}, got "
            f"{name!r}"
        )
    return found
