"""Quantised checkpoints, whose weights are dequantised when they are read.

On a CPU the engine computes with the plain weights, and such a checkpoint saves download and disk,
not memory. On a GPU layers stay in their few bits, see `StoredTensor.grouped`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rsd_engine.models.checkpoints import fp8, packed_int
from rsd_engine.models.checkpoints.base import StoredTensor

Settings = Mapping[str, Any]
"""The quantization_config of a config.json."""


@dataclass(frozen=True)
class _Format:
    check: Callable[[Settings], None]  # raises ValueError for a variant that is not known
    expand: Callable[[dict[str, StoredTensor], Settings], dict[str, StoredTensor]]


_FORMATS = {
    "gptq": _Format(packed_int.check_gptq, packed_int.expand_gptq),
    "awq": _Format(packed_int.check_awq, packed_int.expand_awq),
    "fp8": _Format(fp8.check, fp8.expand),
    "compressed-tensors": _Format(fp8.check_compressed, fp8.expand),
}


def check_quantization(settings: object) -> None:
    """Raises ValueError unless `settings` is None or empty or describes a known format."""
    if settings:
        _format(settings)


def expanded(stored: dict[str, StoredTensor], settings: object) -> dict[str, StoredTensor]:
    """The tensors as if the checkpoint were not quantised.

    Args:
        stored: the checkpoint's tensors.
        settings: the quantization_config, None for plain weights.

    Raises:
        ValueError: the format is not known, or a tensor of it is missing or of the wrong shape.
    """
    if not settings:
        return stored
    return _format(settings).expand(stored, settings)  # type: ignore[arg-type]


def _format(settings: object) -> _Format:
    if not isinstance(settings, Mapping):
        raise ValueError(f"quantization_config must be a JSON object, got {settings!r}")
    method = settings.get("quant_method")
    found = _FORMATS.get(method) if isinstance(method, str) else None
    if found is None:
        raise ValueError(
            f"quantization_config: quant_method={method!r} is not supported; one of "
            f"{', '.join(_FORMATS)}, or use the checkpoint with plain weights"
        )
    found.check(settings)
    return found
