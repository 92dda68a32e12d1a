"""What an engine would allocate, from the configs of its models: without weights or a device.

Pages and state are sized by the code that sizes them in an engine. Vocabulary tables and attention
scratch, some 30 MB, need tokenizers and kernels and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from rsd_engine.memory.budget import PageLayout, PoolLayout, page_layout, shared_size, slot_sizes
from rsd_engine.models.activations import Activations
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.weight_form import WeightForm
from rsd_engine.roofline.formats import WeightFormat
from rsd_engine.roofline.shape import ModelShape
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.state.enums import Role
from rsd_kernels.state.slots import SlotSizes, SlotState, pages_for

T = TypeVar("T")

MAX_ROWS = 256  # packed rows of one pass


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that an engine needs on a device.

    Attributes:
        weights: of each role; a reward head, which is small, is left out. 0 for a role that uses
            those of another.
        kv_bytes_per_token: K and V of one token, all layers, of each role.
        layout: size and contents of a page.
        activations: buffers of the forwards, logits and rewards, and of sampling on a GPU.
        state: slots, their contexts, page tables and the step log.
        tables: cosines and sines of the rotary embeddings, for every position of a context.
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
    def needed(self) -> int:
        """Bytes of all but the pages."""
        return sum(self.weights.values()) + self.activations + self.state + self.tables

    @property
    def growing(self) -> int:
        """Bytes that contexts take beside pages: all that grows with `max_model_len`."""
        return self.state + self.tables

    @property
    def pool(self) -> int:
        """Bytes left for pages; below 0 if the rest does not fit."""
        return self.available - self.needed

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


@dataclass(frozen=True)
class OwnContext:
    """A scorer that reads a writer's own context, on its weights and its K/V.

    Attributes:
        role: the writer.
        num_transient: tokens past its context that it reads after each step.
    """

    role: Role
    num_transient: int


@dataclass(frozen=True)
class ModelMemory:
    """What decides how much memory a model takes.

    Attributes:
        config: its sizes.
        form: what it computes in, also its K and V, and what its matrices are held in.
        weights_format: that of its weights, if they are quantised and not at hand.
    """

    config: ModelConfig
    form: WeightForm
    weights_format: WeightFormat | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.form.dtype

    @property
    def weights(self) -> int:
        """Bytes, all counted as matrices: norms and biases are few."""
        form = self.form
        each, of_tables = form.bytes_per_parameter, form.table_bytes_per_parameter
        shape = ModelShape.of(self.config, self.dtype, each, of_tables, self.weights_format)
        return shape.weight_bytes

    @property
    def activations(self) -> int:
        return Activations.num_bytes(self.config, MAX_ROWS, self.dtype)

    def rope_tables(self, length: int) -> int:
        """Cosines and sines of `length` positions, for each rotation among the layers."""
        num_tables = 2 * len(set(self.config.ropes))
        return num_tables * length * self.config.head_dim * torch.float32.itemsize


def estimate_models(
    models: Mapping[Role, ModelMemory],
    available: int,
    *,
    max_num_seqs: int,
    max_model_len: int,
    page_multiple: int = 1,
    own: OwnContext | None = None,
    max_guesses: int = 0,
    on_gpu: bool = False,
) -> MemoryEstimate:
    """The memory of an engine of these models.

    Args:
        models: of each role; roles with the same object share one model.
        available: bytes that the engine may take.
        max_num_seqs: slots.
        max_model_len: most tokens of prompt and output.
        page_multiple: as in `page_layout`.
        own: the scorer, if it is none of the models.
        max_guesses: as in `Engine`.
        on_gpu: whether tokens are drawn by kernels, which need room for it.
    """
    configs = {role: model.config for role, model in models.items()}
    shapes = {role: model.config.kv_shape(model.dtype) for role, model in models.items()}
    max_len = longest_contexts(configs, max_model_len, own)
    layout = page_layout(shapes, max_len, page_multiple)
    if own is not None:
        draft, target, _ = layout.tokens_per_page
        of_prm = layout.tokens_per_page[own.role]
        layout = replace(layout, tokens_per_page=(draft, target, of_prm))
    num_ids = max(c.vocab_size for role, c in configs.items() if role != Role.PRM)
    sizes = _slot_sizes(layout, max_len, max_num_seqs)
    places = max_num_seqs + max_guesses
    logits = places * (num_ids + 1) * torch.float32.itemsize  # and a reward
    sampling = SampleScratch.num_bytes(sizes.max_len, num_ids, places) if on_gpu else 0
    held: dict[Role, ModelMemory] = {}
    for role, model in models.items():
        if not any(model is other for other in held.values()):
            held[role] = model
    return MemoryEstimate(
        weights={role: model.weights if role in held else 0 for role, model in models.items()},
        kv_bytes_per_token={role: shape.bytes_per_token for role, shape in shapes.items()},
        layout=layout,
        activations=sum(model.activations for model in held.values()) + logits + sampling,
        state=SlotState.num_bytes(sizes),
        tables=sum(
            model.rope_tables(max(max_len[role] for role, same in models.items() if same is model))
            for model in held.values()
        ),
        available=available,
    )


def longest_contexts(
    configs: Mapping[Role, ModelConfig], model_len: int, own: OwnContext | None = None
) -> dict[Role, int]:
    """The longest context of each role, and of the scorer `own` as that of the PRM."""
    found = {role: max_length_of(role, model_len, config) for role, config in configs.items()}
    if own is not None:
        found[own.role] += own.num_transient
        found[Role.PRM] = found[own.role]
    return found


def max_length_of(role: Role, model_len: int, config: ModelConfig) -> int:
    """The longest context of a role; the PRM's has another prompt, and separators."""
    if role != Role.PRM:
        return model_len
    return min(config.max_position_embeddings, shared_size(2 * model_len + 128))


def by_role_name(values: Mapping[Role, T]) -> dict[str, T]:
    """The same values by "draft", "target" and "prm", as JSON wants them."""
    return {role.name.lower(): value for role, value in values.items()}


def _context_tokens(role: Role, length: int, step_tokens: int) -> int:
    """Tokens of a role's context at `length` tokens of text: the PRM's has a separator per step."""
    return length + length // step_tokens if role == Role.PRM else length


def _slot_sizes(layout: PageLayout, max_len: Mapping[Role, int], max_num_seqs: int) -> SlotSizes:
    pool = PoolLayout(**vars(layout), num_pages=layout.pages_per_sequence * max_num_seqs)
    return slot_sizes(pool, max_len, max_num_seqs)
