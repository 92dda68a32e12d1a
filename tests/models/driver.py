"""Runs models over packed batches the way the loop does, with pages in a shuffled order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_engine.memory.page_pool import PagePool
from rsd_engine.models.heads import LanguageModel, Model, RewardModel
from rsd_kernels.reward.twin import rewards
from rsd_kernels.state.rows import RowBatch
from tests.page_checks import poison


def pack(
    chunks: list[tuple[int, list[int]]], kv_len: list[int], table: Tensor, per_page: int
) -> RowBatch:
    """One pass: `chunks` are (slot, new tokens); `kv_len` holds what each slot has read so far."""
    rows, starts = [], [0]
    for slot, tokens in chunks:
        for i, token in enumerate(tokens):
            position = kv_len[slot] + i
            page = int(table[slot, position // per_page])
            rows.append((token, slot, position, page, position % per_page))
        starts.append(len(rows))
    batch = RowBatch.allocate(len(rows), len(chunks), torch.device("cpu"))
    for column, tensor in enumerate(
        (batch.token, batch.slot, batch.position, batch.page, batch.offset)
    ):
        tensor.copy_(torch.tensor([row[column] for row in rows]))
    batch.seq_slot.copy_(torch.tensor([slot for slot, _ in chunks]))
    batch.seq_start.copy_(torch.tensor(starts))
    batch.seq_kv_len.copy_(torch.tensor([kv_len[slot] + len(tokens) for slot, tokens in chunks]))
    batch.seq_complete.fill_(1)
    batch.place_row_end.copy_(batch.seq_start[1:])
    return batch


@dataclass
class Driver:
    """A model with pages full of NaN; a slot's pages lie scattered over the pool."""

    model: Model
    tokens_per_page: int = 5
    num_slots: int = 4
    max_tokens: int = 96

    def __post_init__(self) -> None:
        shape = self.model.config.kv_shape(self.model.dtype)
        page_bytes = -(-self.tokens_per_page * shape.bytes_per_token // 256) * 256
        per_slot = -(-self.max_tokens // self.tokens_per_page)
        num_pages = self.num_slots * per_slot
        self.pool = PagePool(num_pages, page_bytes, torch.device("cpu"))
        poison(self.pool, torch.arange(num_pages))
        self.kv = self.pool.view(shape)
        assert self.kv.tokens_per_page >= self.tokens_per_page
        order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(3))
        self.table = order.view(self.num_slots, per_slot).int()
        self.kv_len = [0] * self.num_slots

    def run(self, *chunks: tuple[int, list[int]]) -> Tensor:
        """Reads new tokens of some slots in one pass; returns logits [S, V] or rewards [S]."""
        batch = pack(list(chunks), self.kv_len, self.table, self.kv.tokens_per_page)
        for slot, tokens in chunks:
            self.kv_len[slot] += len(tokens)
        if isinstance(self.model, RewardModel):
            hidden = self.model.decoder.forward(batch, self.kv, self.table)
            return rewards(hidden[(batch.seq_start[1:] - 1).long()], self.model.head)
        assert isinstance(self.model, LanguageModel)
        out = torch.full((len(chunks), self.model.config.vocab_size), float("nan"))
        self.model.logits(batch, self.kv, self.table, out)
        return out

    def roll_back(self, slot: int, kv_len: int = 0) -> None:
        """Rolls a slot back and fills the whole pages it no longer needs with NaN."""
        first = -(-kv_len // self.kv.tokens_per_page)
        poison(self.pool, self.table[slot, first:])
        self.kv_len[slot] = kv_len
