"""What an engine would allocate, from the configs of its models: without weights or a device.

Pages and state are sized by the code that sizes them in an engine. Vocabulary tables and attention
scratch, some 30 MB, need tokenizers and kernels and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from rsd_engine.engine.memory_report import by_role_name
from rsd_engine.memory.budget import PageLayout, PoolLayout, page_layout, slot_sizes
from rsd_engine.models.activations import Activations
from rsd_engine.models.config import ModelConfig
from rsd_kernels.state.enums import Role
from rsd_kernels.state.slots import SlotState, pages_for

MAX_ROWS = 256  # packed rows of one pass


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that an engine needs on a device.

    Attributes:
        weights: of each role; a reward head, which is small, is left out.
        kv_bytes_per_token: K and V of one token, all layers, of each role.
        layout: size and contents of a page.
        activations: buffers of the forwards, logits and rewards.
        state: slots, their contexts, page tables and the step log.
        tables: cosines and sines of the rotary embeddings, for every position of each model.
        available: the memory that the engine may use.
    """

    weights: Mapping[Role, int]
    kv_bytes_per_token: Mapping[Role, int]
    layout: PageLayout
    activations: int
    state: int
    tables: int
    available: int

    @property
    def pool(self) -> int:
        """Bytes left for pages; below 0 if the rest does not fit."""
        others = self.activations + self.state + self.tables
        return self.available - sum(self.weights.values()) - others

    def sequences(self, length: int, step_tokens: int) -> int:
        """How many sequences of `length` tokens the pages hold at once, for all models."""
        per_sequence = sum(
            pages_for(_context_tokens(role, length, step_tokens), self.layout.tokens_per_page[role])
            for role in self.weights
        )
        return max(0, self.pool // self.layout.page_bytes) // per_sequence

    def page_waste(self, length: int, step_tokens: int) -> float:
        """Share of a sequence's pages that stays empty, at `length` tokens."""
        held = used = 0
        for role, size in self.kv_bytes_per_token.items():
            tokens = _context_tokens(role, length, step_tokens)
            held += pages_for(tokens, self.layout.tokens_per_page[role]) * self.layout.page_bytes
            used += tokens * size
        return 1 - used / held

    def to_dict(self, lengths: Sequence[int], step_tokens: int) -> dict[str, Any]:
        """JSON-ready values; `sequences` and `page_waste` for each of `lengths`."""
        tokens_per_page = {role: self.layout.tokens_per_page[role] for role in self.weights}
        return {
            "weights": by_role_name(self.weights),
            "kv_bytes_per_token": by_role_name(self.kv_bytes_per_token),
            "page_bytes": self.layout.page_bytes,
            "tokens_per_page": by_role_name(tokens_per_page),
            "activations": self.activations,
            "state": self.state,
            "tables": self.tables,
            "available": self.available,
            "pool": self.pool,
            "sequences": {str(n): self.sequences(n, step_tokens) for n in lengths},
            "page_waste": {str(n): self.page_waste(n, step_tokens) for n in lengths},
        }


def estimate_memory(
    configs: Mapping[Role, ModelConfig],
    *,
    dtype: torch.dtype | None,
    memory_bytes: float,
    utilization: float,
    max_num_seqs: int,
    max_model_len: int,
) -> MemoryEstimate:
    """The memory of an engine of these models.

    Args:
        configs: the model of each role.
        dtype: of weights, K and V; None takes each checkpoint's own.
        memory_bytes: of the device.
        utilization: share of it that the engine may use.
        max_num_seqs: slots.
        max_model_len: most tokens of prompt and output.
    """
    dtypes = {role: dtype or config.dtype for role, config in configs.items()}
    shapes = {role: config.kv_shape(dtypes[role]) for role, config in configs.items()}
    max_len = {role: max_length_of(role, max_model_len, config) for role, config in configs.items()}
    layout = page_layout(shapes, max_len)
    num_ids = min(c.vocab_size for role, c in configs.items() if role != Role.PRM)
    logits = max_num_seqs * (num_ids + 1) * torch.float32.itemsize  # and a reward
    forwards = sum(Activations.num_bytes(c, MAX_ROWS, dtypes[role]) for role, c in configs.items())
    return MemoryEstimate(
        weights={role: c.num_parameters * dtypes[role].itemsize for role, c in configs.items()},
        kv_bytes_per_token={role: shape.bytes_per_token for role, shape in shapes.items()},
        layout=layout,
        activations=forwards + logits,
        state=_state_bytes(layout, max_len, max_num_seqs),
        tables=sum(_rope_bytes(config) for config in configs.values()),
        available=int(memory_bytes * utilization),
    )


def max_length_of(role: Role, model_len: int, config: ModelConfig) -> int:
    """The longest context of a role; the PRM's has another prompt, and separators."""
    if role != Role.PRM:
        return model_len
    return min(config.max_position_embeddings, 2 * model_len + 128)


def _context_tokens(role: Role, length: int, step_tokens: int) -> int:
    """Tokens of a role's context at `length` tokens of text: the PRM's has a separator per step."""
    return length + length // step_tokens if role == Role.PRM else length


def _rope_bytes(config: ModelConfig) -> int:
    """Cosines and sines of every position, for each rotation among the layers."""
    return (
        2
        * len(set(config.ropes))
        * config.max_position_embeddings
        * config.head_dim
        * torch.float32.itemsize
    )


def _state_bytes(layout: PageLayout, max_len: Mapping[Role, int], max_num_seqs: int) -> int:
    pool = PoolLayout(**vars(layout), num_pages=layout.pages_per_sequence * max_num_seqs)
    sizes = slot_sizes(pool, max_len, max_num_seqs)
    state = SlotState.allocate(sizes, torch.device("meta"))
    return sum(getattr(state, field.name).nbytes for field in fields(state))
