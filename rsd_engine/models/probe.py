"""Probes: small heads for a decoder that writes, from a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.checkpoints.weight_files import stored_tensors
from rsd_engine.models.heads import LanguageModel
from rsd_kernels.reward.heads import RewardHead, TwoClassHead, ValueHead

_LINEAR = {"weight", "bias"}
_TWO_LAYERS = {"0.weight", "0.bias", "2.weight", "2.bias"}


class ProbeFile:
    """A probe whose file was checked and not read yet.

    Args:
        file: a safetensors file, see `rsd_engine.Probe`.
        width: of the hidden rows that it will read.

    Raises:
        ValueError: there is no such file, or it does not hold a probe of this width.
    """

    def __init__(self, file: str | Path, width: int) -> None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"probe {str(file)!r}: there is no such file")
        self._tensors = stored_tensors(path.parent, (path.name,))
        names = set(self._tensors)
        if names not in (_LINEAR, _TWO_LAYERS):
            raise ValueError(
                f"probe {str(file)!r} has tensors {sorted(names)}; it must have "
                f"{sorted(_LINEAR)}, or {sorted(_TWO_LAYERS)} for two layers"
            )
        _check_shapes(str(file), self._tensors, width)

    def head(self, model: LanguageModel) -> RewardHead:
        """The head on a model's decoder; it reads the final norm's output."""
        found = {name: tensor.read() for name, tensor in self._tensors.items()}
        config, norm = model.config, model.decoder.weights.final_norm
        if config.logits_scale != 1:  # of logits alone, but held in the norm
            norm = norm / config.logits_scale
        if found.keys() >= _LINEAR:
            weight, bias = (_difference(found[name].float()) for name in ("weight", "bias"))
            return ValueHead(
                norm, config.rms_norm_eps, weight.to(norm.device), bias.to(norm.device)
            )
        inner, inner_bias = (found[name] for name in ("0.weight", "0.bias"))
        classes, classes_bias = (_two_rows(found[name]) for name in ("2.weight", "2.bias"))
        layers = (inner, inner_bias, classes, classes_bias)
        placed = (tensor.to(norm.device, norm.dtype).contiguous() for tensor in layers)
        return TwoClassHead(norm, config.rms_norm_eps, *placed)


def _check_shapes(file: str, tensors: Mapping[str, StoredTensor], width: int) -> None:
    first, last = ("weight", "weight") if tensors.keys() >= _LINEAR else ("0.weight", "2.weight")
    shape = tensors[first].shape
    if len(shape) != 2 or shape[1] != width:
        raise ValueError(
            f"probe {file!r}: tensor {first} has shape {list(shape)}; its second size must be "
            f"{width}, the width of the model's hidden rows"
        )
    if tensors[last].shape[:1] not in ((1,), (2,)):
        raise ValueError(
            f"probe {file!r}: tensor {last} has shape {list(tensors[last].shape)}; it must have "
            "one row, or two for bad and good steps"
        )
    wanted: dict[str, tuple[int, ...]] = {
        last: (tensors[last].shape[0], width if first == last else shape[0])
    }
    for name in (first, last):
        rows = tensors[name].shape[0]
        wanted[name.replace("weight", "bias")] = (rows,)
    for name, expected in wanted.items():
        if tensors[name].shape != expected:
            raise ValueError(
                f"probe {file!r}: tensor {name} has shape {list(tensors[name].shape)}; it must be "
                f"{list(expected)} beside the others"
            )
        if not tensors[name].dtype.is_floating_point:
            raise ValueError(
                f"probe {file!r}: tensor {name} is of type {tensors[name].dtype}; it must hold "
                "floating-point numbers"
            )


def _difference(rows: Tensor) -> Tensor:
    """Good minus bad of two rows; one row as it is."""
    return rows if rows.shape[0] == 1 else rows[1:] - rows[:1]


def _two_rows(rows: Tensor) -> Tensor:
    """One row as that of the good class, beside a bad one of zeros: its softmax is a sigmoid."""
    return rows if rows.shape[0] == 2 else torch.cat([torch.zeros_like(rows), rows])
