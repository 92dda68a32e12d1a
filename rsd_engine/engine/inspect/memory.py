"""What fits a given memory: the weights, and how many texts at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from rsd_engine.engine.inspect.facts import ModelFacts
from rsd_engine.engine.inspect.finding import Finding, ok, problem
from rsd_engine.engine.inspect.roles import Roles
from rsd_engine.engine.memory_estimate import MemoryEstimate, estimate_memory
from rsd_engine.engine.memory_report import megabytes
from rsd_engine.models.loader import resolve_dtype
from rsd_kernels.cpu import ops as cpu_ops

STEP_TOKENS = 40  # of a step, by which the PRM's separators are counted
_LENGTHS = (1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class Machine:
    """Where the models would run, and how: the arguments of `Engine` with these names.

    Attributes:
        device: "cpu" or "cuda" decides the dtype; it need not be there if `memory_bytes` is known.
        memory_bytes: all memory of the device.
        gpu_memory_utilization: share of it that the engine may use.
    """

    device: torch.device
    memory_bytes: int
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 16

    def weight_bytes(self, model: ModelFacts) -> int:
        """Bytes of the weights in memory."""
        dtype = resolve_dtype(self.dtype, model.config, self.device)
        in_fp32_by_library = self.device.type == "cpu" and dtype == torch.float32
        if in_fp32_by_library and cpu_ops.available() and _in_bfloat16(model):
            dtype = torch.bfloat16
        return model.config.num_parameters * dtype.itemsize

    def kv_bytes_per_token(self, model: ModelFacts) -> int:
        """Bytes of K and V of one token, all layers."""
        dtype = resolve_dtype(self.dtype, model.config, self.device)
        return model.config.kv_shape(dtype).bytes_per_token


@dataclass(frozen=True)
class MemoryFit:
    """What an engine of these models needs, and what it holds at once.

    Attributes:
        machine: its memory.
        max_model_len: most tokens of prompt and output.
        longest: the largest `max_model_len` of which one request fits; 0 if none does.
        lengths: of texts, to show how many fit at once.
    """

    estimate: MemoryEstimate
    machine: Machine
    max_model_len: int
    longest: int
    lengths: tuple[int, ...]

    @property
    def full_requests(self) -> int:
        """How many requests of `max_model_len` tokens fit at once."""
        return _full_requests(self.estimate)

    def finding(self) -> Finding:
        """Whether an engine starts."""
        estimate, length = self.estimate, self.max_model_len
        weights = megabytes(sum(estimate.weights.values()))
        usable = megabytes(estimate.available)
        if self.full_requests:
            many = "request" if self.full_requests == 1 else "requests"
            return ok(
                "memory",
                f"{usable} to use, {weights} of weights; {self.full_requests} {many} of {length} "
                "tokens fit at once",
            )
        if self.longest:
            return problem(
                "memory",
                f"{usable} to use, {weights} of weights: no room for one request of {length} "
                f"tokens; set --max-model-len to {self.longest} or less, or give more memory",
            )
        return problem(
            "memory",
            f"{usable} to use, {weights} of weights: the models do not fit; choose smaller ones, a "
            "--dtype of fewer bytes, or more memory",
        )


def fit_memory(roles: Roles, machine: Machine, max_model_len: int) -> MemoryFit:
    """What an engine of these models would need; one of them must be a writer."""

    def estimate(length: int) -> MemoryEstimate:
        return _estimate(roles, machine, length)

    whole = estimate(max_model_len)
    longest = max_model_len if _full_requests(whole) else 0
    if not longest:
        low, high = 1, max_model_len  # a request of `high` does not fit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _full_requests(estimate(middle)) else (low, middle)
        longest = low if low > 1 else 0
    lengths = (*(n for n in _LENGTHS if n < max_model_len), max_model_len)
    return MemoryFit(whole, machine, max_model_len, longest, lengths)


def _estimate(roles: Roles, machine: Machine, max_model_len: int) -> MemoryEstimate:
    by_checkpoint = machine.dtype == "auto" and machine.device.type != "cpu"
    configs = {role: model.config for role, model in roles.items()}
    dtype = resolve_dtype(machine.dtype, next(iter(configs.values())), machine.device)
    found = estimate_memory(
        configs,
        dtype=None if by_checkpoint else dtype,
        memory_bytes=machine.memory_bytes,
        utilization=machine.gpu_memory_utilization,
        max_num_seqs=machine.max_num_seqs,
        max_model_len=max_model_len,
    )
    return replace(found, weights={r: machine.weight_bytes(m) for r, m in roles.items()})


def _full_requests(estimate: MemoryEstimate) -> int:
    layout = estimate.layout
    return max(0, estimate.pool // layout.page_bytes) // layout.pages_per_sequence


def _in_bfloat16(model: ModelFacts) -> bool:
    return model.storage.num_files > 0 and model.checkpoint.has_bfloat16_matrices()


def memory_of(device: torch.device) -> int:
    """All memory of a device of this machine, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
