"""Bits per weight of the formats that quantised checkpoints have, scales and zeros included."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightFormat:
    """How the weights of a model are stored.

    Attributes:
        name: as on a command line.
        bits: of a weight in a layer, with its share of scales and zeros.
        whole: whether the embedding and the LM head have this format too. GGUF files quantise them;
            GPTQ, AWQ and fp8 checkpoints leave them as they are.
    """

    name: str
    bits: float
    whole: bool

    @property
    def bytes_per_parameter(self) -> float:
        """Of a weight in a layer. Norms and biases, which are few, count as much."""
        return self.bits / 8


def _grouped(name: str, bits: int, group: int) -> WeightFormat:
    """GPTQ and AWQ: a 16-bit scale and a zero of `bits` for each group of weights."""
    return WeightFormat(name, bits + (16 + bits) / group, whole=False)


def _blocks(name: str, num_bytes: int, weights: int) -> WeightFormat:
    """GGUF: blocks of so many weights, with their scales (ggml-common.h of llama.cpp)."""
    return WeightFormat(name, 8 * num_bytes / weights, whole=True)


_ALL = (
    # e4m3 with a 32-bit scale for 128 x 128 weights, as DeepSeek-V3 and Qwen3 are published
    WeightFormat("fp8", 8 + 32 / 128**2, whole=False),
    _grouped("int8", 8, 128),
    _grouped("int4", 4, 128),
    _grouped("int4-g64", 4, 64),
    _grouped("int4-g32", 4, 32),
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
    found = _FORMATS.get(name.strip().lower())
    if found is None:
        raise ValueError(f"quantization must be one of {', '.join(_FORMATS)}, got {name!r}")
    return found
