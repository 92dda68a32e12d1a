"""What is read off the last row of each sequence: logits of a language model, rewards of a PRM."""

from __future__ import annotations

from torch import Tensor

from rsd_engine.memory.page_pool import PagedKV
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.reward_heads import RewardHead
from rsd_kernels.ops import rewards
from rsd_kernels.reward.heads import RewardHead as ScoringHead
from rsd_kernels.state.rows import RowBatch


class Model:
    """A decoder, and the final norm of the last row of every sequence."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.config: ModelConfig = decoder.config
        self.dtype = decoder.dtype
        self.device = decoder.device

    def last_hidden(
        self,
        batch: RowBatch,
        kv: PagedKV,
        page_table: Tensor,  # [B, P] int32
    ) -> Tensor:
        """Runs one pass.

        Returns:
            [S, hidden]: the last row of each sequence after the final norm; valid until the next
            pass. The row of a sequence that brings no tokens means nothing.
        """
        decoder = self.decoder
        hidden = decoder.forward(batch, kv, page_table)
        last = decoder.activations.last[: batch.num_seqs]
        norm, eps = decoder.weights.final_norm, self.config.rms_norm_eps
        decoder.ops.last_rows_norm(hidden, batch.seq_start, norm, eps, out=last)
        return last


class LanguageModel(Model):
    """Decoder, final norm and LM head."""

    def __init__(self, decoder: Decoder, lm_head: Tensor) -> None:
        super().__init__(decoder)
        self.lm_head = lm_head  # [vocab_size, hidden], the embedding itself where they are tied

    @property
    def num_parameters(self) -> int:
        """Weights in use, a tied embedding counted once."""
        return self.config.num_parameters

    @property
    def weight_bytes(self) -> int:
        own_head = self.lm_head is not self.decoder.weights.embedding
        return self.decoder.weights.nbytes + (self.lm_head.nbytes if own_head else 0)

    def logits(
        self,
        batch: RowBatch,
        kv: PagedKV,
        page_table: Tensor,  # [B, P] int32
        out: Tensor,  # [S, V] fp32, V <= vocab_size
    ) -> None:
        """Runs one pass; row s of `out` becomes the logits after the last row of sequence s.

        `out` may have fewer columns than the model has vocabulary rows: padded ids at the end,
        which are never sampled, are then not computed.
        """
        last = self.last_hidden(batch, kv, page_table)
        self.decoder.ops.lm_head(last, self.lm_head[: out.shape[1]], out=out)


class RewardModel(Model):
    """Decoder, final norm and the head of a process reward model."""

    def __init__(self, decoder: Decoder, head: RewardHead) -> None:
        super().__init__(decoder)
        self.head = head
        norm, eps = decoder.weights.final_norm, self.config.rms_norm_eps
        self.scoring: ScoringHead = head.after(norm, eps)

    @property
    def num_parameters(self) -> int:
        """Weights in use: backbone and reward head, without the checkpoint's unused LM head."""
        return self.config.num_parameters + sum(t.numel() for t in self.head.tensors())

    @property
    def weight_bytes(self) -> int:
        return self.decoder.weights.nbytes + sum(t.nbytes for t in self.head.tensors())

    def rewards(
        self,
        batch: RowBatch,
        kv: PagedKV,
        page_table: Tensor,  # [B, P] int32
        out: Tensor,  # [S] fp32
    ) -> None:
        """Runs one pass; `out[s]` becomes the reward at the last row of sequence s."""
        hidden = self.decoder.forward(batch, kv, page_table)
        out.copy_(rewards(hidden[(batch.seq_start[1:] - 1).long()], self.scoring))
