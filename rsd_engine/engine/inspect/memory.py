"""What fits a given memory: the weights, and how many texts at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rsd_engine.engine.inspect.facts import ModelFacts
from rsd_engine.engine.inspect.finding import Finding, ok, problem
from rsd_engine.engine.inspect.weights import FormatShare, shares_by_config, shares_of
from rsd_engine.engine.memory_estimate import ModelMemory
from rsd_engine.engine.memory_fit import MemoryFit, MemoryOptions, fit_memory
from rsd_engine.engine.model_sources import OpenOptions
from rsd_engine.memory.available import megabytes
from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.loader import resolve_dtype, weight_form
from rsd_engine.models.weight_form import WeightForm
from rsd_kernels.state.enums import Role

_OTHER = {"cpu": torch.device("cuda"), "cuda": torch.device("cpu")}
_STEP_TOKENS = 40  # of a step, by which the PRM's separators are counted
_LENGTHS = (1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class Machine:
    """Where the models would run, and the arguments of `Engine` that decide what fits.

    Attributes:
        device: its type decides the dtype; a GPU need not be there.
        available: bytes that the engine may use.
        opening: how checkpoints are opened there.
    """

    device: torch.device
    available: int
    dtype: str = "auto"
    max_num_seqs: int = 16
    max_model_len: int | None = None
    opening: OpenOptions = field(default_factory=OpenOptions)

    def load(self, model: ModelFacts, role: Role | None = None) -> LoadedModel:
        """What a model would be in memory.

        Args:
            model: its checkpoint.
            role: that it plays, by which its weights may be quantised as they are loaded.

        Raises:
            ValueError: the headers of its weights cannot be read, or it cannot be quantised.
        """
        plain = model.checkpoint
        checkpoint = plain
        if role is not None:
            checkpoint = self.opening.quantised(role.name.lower(), plain, self.device)
        form, shares = self._held(model, checkpoint, self.device)
        _, elsewhere = self._held(model, plain, _OTHER[self.device.type])
        return LoadedModel(ModelMemory(model.config, form), shares, elsewhere)

    def _held(
        self, model: ModelFacts, checkpoint: Checkpoint, device: torch.device
    ) -> tuple[WeightForm, tuple[FormatShare, ...]]:
        config = model.config
        if model.storage.num_files == 0:
            form = WeightForm.plain(resolve_dtype(self.dtype, config, device))
            return form, shares_by_config(config, form)
        form = weight_form(checkpoint, config, self.dtype, device)
        return form, shares_of(checkpoint, config, form)


@dataclass(frozen=True)
class LoadedModel:
    """What a model would be in memory.

    Attributes:
        memory: what decides how much it takes.
        shares: what its matrices are held in.
        elsewhere: the same on a GPU, if the machine is a CPU, and the other way round.
    """

    memory: ModelMemory
    shares: tuple[FormatShare, ...]
    elsewhere: tuple[FormatShare, ...]


def find_fit(
    models: Mapping[Role, ModelMemory], machine: Machine
) -> tuple[MemoryFit | None, Finding]:
    """What an engine of these models would get, None if it does not start; one must be a writer."""
    options = MemoryOptions(
        max_num_seqs=machine.max_num_seqs,
        max_model_len=machine.max_model_len,
        kv_cache_memory_bytes=None,
        gpu_memory_utilization=1.0,
    )
    try:
        fit = fit_memory(models, options, machine.device, available=machine.available)
    except (MemoryError, ValueError) as error:
        return None, problem("memory" if isinstance(error, MemoryError) else "context", str(error))
    return fit, _finding(fit, machine)


def full_requests(fit: MemoryFit) -> int:
    """How many requests of full length have pages at once."""
    return fit.layout.num_pages // fit.layout.pages_per_sequence


def at_once(fit: MemoryFit, machine: Machine) -> dict[int, int]:
    """How many texts run at once, by their length in tokens."""
    lengths = (*(n for n in _LENGTHS if n < fit.model_len), fit.model_len)
    pages = fit.layout.num_bytes
    estimate = replace(fit.estimate, available=fit.estimate.needed + pages)
    return {n: min(machine.max_num_seqs, estimate.sequences(n, _STEP_TOKENS)) for n in lengths}


def memory_dict(fit: MemoryFit, machine: Machine) -> dict[str, Any]:
    """JSON-ready values, in bytes and tokens."""
    return fit.estimate.to_dict((), _STEP_TOKENS) | {
        "pool": fit.layout.num_bytes,
        "sequences": {str(length): count for length, count in at_once(fit, machine).items()},
    }


def _finding(fit: MemoryFit, machine: Machine) -> Finding:
    weights = megabytes(sum(fit.estimate.weights.values()))
    pages, count = megabytes(fit.layout.num_bytes), full_requests(fit)
    requests = f"{count} requests of {fit.model_len} tokens fit at once"
    if count == 1:
        requests = f"one request of {fit.model_len} tokens fits at once"
    return ok(
        "memory",
        f"{weights} of weights and {pages} of pages in {megabytes(machine.available)}: {requests}",
    )
