"""The models of an engine: a decoder and what is read off its last rows, logits or rewards."""

from __future__ import annotations

from torch import Tensor

from rsd_engine.memory.page_pool import PagedKV
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.weights import HeadWeight
from rsd_kernels import ops
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.reward.heads import RewardHead
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState


class Model:
    """A decoder whose final norm is applied only to the rows that are needed."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.config: ModelConfig = decoder.config
        self.dtype = decoder.dtype
        self.device = decoder.device


class LanguageModel(Model):
    """Decoder, final norm and LM head."""

    def __init__(self, decoder: Decoder, lm_head: HeadWeight) -> None:
        super().__init__(decoder)
        self.lm_head = lm_head  # [vocab_size, hidden]; a tied one holds the embedding itself

    @property
    def num_parameters(self) -> int:
        """Weights in use, a tied embedding counted once."""
        return self.config.num_parameters

    @property
    def weight_bytes(self) -> int:
        own_head = 0 if self.config.tie_word_embeddings else self.lm_head.nbytes
        return self.decoder.weights.nbytes + own_head

    def logits(
        self,
        batch: RowBatch,
        kv: PagedKV,
        page_table: Tensor,  # [B, P] int32
        out: Tensor,  # [at least M, V] fp32, V <= vocab_size
    ) -> None:
        """Runs one pass; row p of `out` becomes the logits of place p.

        `out` may have fewer columns than the model has vocabulary rows: padded ids at the end,
        which are never sampled, are then not computed. Rows past the pass's places mean nothing.
        """
        decoder = self.decoder
        hidden = decoder.forward(batch, kv, page_table)
        last = decoder.activations.last[: batch.num_places]
        norm, eps = decoder.weights.final_norm, self.config.rms_norm_eps
        decoder.ops.rows_norm(hidden, batch.place_row_end, norm, eps, out=last)
        decoder.ops.lm_head(last, self.lm_head.narrow(0, out.shape[1]), out=out[: batch.num_places])


class RewardModel(Model):
    """Decoder and the head of a process reward model, which includes the final norm."""

    def __init__(self, decoder: Decoder, head: RewardHead) -> None:
        super().__init__(decoder)
        self.head = head

    @property
    def num_parameters(self) -> int:
        """Weights in use: decoder and reward head, without the checkpoint's unused LM head."""
        return self.config.num_parameters + sum(t.numel() for t in self.head.own_tensors())

    @property
    def weight_bytes(self) -> int:
        return self.decoder.weights.nbytes + sum(t.nbytes for t in self.head.own_tensors())

    @property
    def hidden(self) -> Tensor:
        """[max_rows, hidden] before the final norm: left by `read` for `score`."""
        return self.decoder.activations.hidden

    def read(
        self,
        batch: RowBatch,
        kv: PagedKV,
        page_table: Tensor,  # [B, P] int32
    ) -> None:
        """Runs one pass; row n of `hidden` becomes that of row n of the pass."""
        self.decoder.forward(batch, kv, page_table)

    def rewards(
        self,
        kv: PagedKV,
        batch: RowBatch,
        page_table: Tensor,  # [B, P] int32
        rows: Tensor,  # [k] int64
    ) -> Tensor:
        """[k] float32: runs one pass; the rewards at some of its rows."""
        self.read(batch, kv, page_table)
        return ops.rewards(self.hidden[rows], self.head)

    def score(
        self,
        batch: RowBatch,
        ends: EndRules | None,
        words: Tensor | None,  # from `ops.bridge_scratch`
        state: SlotState,
        tokens_per_page: tuple[int, int, int],
        scratch: Tensor,  # from `ops.score_scratch`
        prm_kv: Role = Role.PRM,
    ) -> None:
        """Scores each step that the pass read to its end, and accepts or rejects it."""
        hidden = self.hidden[: batch.num_rows]
        ops.score(state, batch, hidden, self.head, tokens_per_page, scratch, prm_kv, ends, words)
