"""What an engine would allocate, from three configs alone: no weights, no device.

The same sums as `budget` and `memory` make for a running engine; vocabulary tables and
attention scratch, which need the tokenizers and the kernels, are left out: some 30 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from rsd_engine.memory.budget import PageLayout, PoolLayout, page_layout, slot_sizes
from rsd_engine.models.activations import Activations
from rsd_engine.models.config import ModelConfig
from rsd_kernels.state.enums import Role
from rsd_kernels.state.slots import SlotState, pages_for

MAX_ROWS = 256  # packed rows of one pass


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes an engine needs on a device.

    Attributes:
        weights: of each role; without a reward head, which is small.
        kv_bytes_per_token: of each role.
        layout: of the pages.
        activations: buffers of the forwards and of the logits.
        state: slots, token rows, page tables and the step log.
        tables: angles of the rotary embeddings, for the whole context of each model.
        available: what `memory` leaves for all of it.
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
        """How many sequences of `length` tokens the pages hold at once, on all three models."""
        per_sequence = sum(
            pages_for(_context_tokens(role, length, step_tokens), self.layout.tokens_per_page[role])
            for role in self.weights
        )
        return max(0, self.pool // self.layout.page_bytes) // per_sequence

    def page_waste(self, length: int, step_tokens: int) -> float:
        """Share of the bytes of a sequence's pages that hold nothing, at `length` tokens."""
        held = used = 0
        for role, size in self.kv_bytes_per_token.items():
            tokens = _context_tokens(role, length, step_tokens)
            held += pages_for(tokens, self.layout.tokens_per_page[role]) * self.layout.page_bytes
            used += tokens * size
        return 1 - used / held

    def to_dict(self, lengths: Sequence[int], step_tokens: int) -> dict[str, Any]:
        """JSON-ready values, with what fits at each of `lengths`."""
        return {
            "weights": {role.name.lower(): n for role, n in self.weights.items()},
            "kv_bytes_per_token": {r.name.lower(): n for r, n in self.kv_bytes_per_token.items()},
            "page_bytes": self.layout.page_bytes,
            "tokens_per_page": {
                role.name.lower(): self.layout.tokens_per_page[role] for role in self.weights
            },
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
        configs: of each role.
        dtype: of weights and KV; None: each checkpoint's own.
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
    rows = sum(Activations.num_bytes(c, MAX_ROWS, dtypes[role]) for role, c in configs.items())
    return MemoryEstimate(
        weights={role: c.num_parameters * dtypes[role].itemsize for role, c in configs.items()},
        kv_bytes_per_token={role: shape.bytes_per_token for role, shape in shapes.items()},
        layout=layout,
        activations=rows + logits,
        state=_state_bytes(layout, max_len, max_num_seqs),
        tables=sum(_rope_bytes(config) for config in configs.values()),
        available=int(memory_bytes * utilization),
    )


def max_length_of(role: Role, model_len: int, config: ModelConfig) -> int:
    """Tokens a role's row may hold; the PRM's has another prompt and more separators."""
    if role != Role.PRM:
        return model_len
    return min(config.max_position_embeddings, 2 * model_len + 128)


def _context_tokens(role: Role, length: int, step_tokens: int) -> int:
    """Tokens of a role's row at `length` tokens of text: the PRM's has a separator a step."""
    return length + length // step_tokens if role == Role.PRM else length


def _rope_bytes(config: ModelConfig) -> int:
    """Cosines and sines of every position."""
    return 2 * config.max_position_embeddings * config.head_dim * torch.float32.itemsize


def _state_bytes(layout: PageLayout, max_len: Mapping[Role, int], max_num_seqs: int) -> int:
    pool = PoolLayout(
        page_bytes=layout.page_bytes,
        tokens_per_page=layout.tokens_per_page,
        pages_per_sequence=layout.pages_per_sequence,
        num_pages=layout.pages_per_sequence * max_num_seqs,
    )
    sizes = slot_sizes(pool, max_len, max_num_seqs)
    state = SlotState.allocate(sizes, torch.device("meta"))
    return sum(getattr(state, field.name).nbytes for field in fields(state))
