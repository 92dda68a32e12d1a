"""Checks the options of `rsd inspect` and inspects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rsd_engine.arguments import check_integer, check_number
from rsd_engine.cli.errors import UsageError
from rsd_engine.engine.device import resolve_device
from rsd_engine.engine.inspect.inspection import Inspection, inspect_models
from rsd_engine.engine.inspect.memory import Machine
from rsd_engine.engine.memory_estimate import MAX_ROWS
from rsd_engine.engine.model_sources import OpenOptions
from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_engine.memory.available import available_bytes
from rsd_engine.models.loader import check_dtype
from rsd_kernels.state.enums import Role


@dataclass(frozen=True)
class InspectOptions:
    """The options of the command; None takes the engine's default."""

    named: Mapping[str, str]  # role -> model
    others: Sequence[str]
    revision: str | None
    device: str | None
    dtype: str | None
    memory_bytes: int | None
    max_num_seqs: int | None
    max_model_len: int | None
    gpu_memory_utilization: float | None
    quantization: str | Mapping[str, str] | None = None
    prm_format: str | dict[str, Any] | None = None
    prm_separator: str | None = None

    def machine(self) -> Machine:
        """Where the models would run.

        Raises:
            ValueError: there is no such device, or a value is not allowed.
        """
        share = 0.9 if self.gpu_memory_utilization is None else self.gpu_memory_utilization
        check_number("gpu_memory_utilization", share, 0, 1, "in (0, 1]", open_low=True)
        device = self._device()
        available = self._available(device, share)
        given = {"dtype": self.dtype, "max_num_seqs": self.max_num_seqs}
        named: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        opening = OpenOptions(quantization=self.quantization)
        found = Machine(
            device, available, **named, max_model_len=self.max_model_len, opening=opening
        )
        check_dtype(found.dtype)
        opening.check_computed(found.dtype, device)
        check_integer("max_num_seqs", found.max_num_seqs, 1, MAX_ROWS)
        if found.max_model_len is not None:
            check_integer("max_model_len", found.max_model_len, 2)
        return found

    def _device(self) -> torch.device:
        """A GPU need not be there if its memory is given."""
        if self.device == "cuda" and self.memory_bytes is not None:
            return torch.device("cuda")
        return resolve_device(self.device or "auto")

    def _available(self, device: torch.device, share: float) -> int:
        if self.memory_bytes is None:
            return available_bytes(device, share)
        return int(share * self.memory_bytes) if device.type == "cuda" else self.memory_bytes


def run_inspection(options: InspectOptions) -> Inspection:
    """Inspects the models.

    Raises:
        UsageError: an option is not allowed, or does not fit the models.
    """
    try:
        return inspect_models(
            {Role[name.upper()]: model for name, model in options.named.items()},
            options.others,
            options.machine(),
            revision=options.revision,
            prm_options=PrmOptions(options.prm_format, options.prm_separator),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
