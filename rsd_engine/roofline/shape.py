"""The sizes of a model that decide how many bytes and operations a pass costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rsd_engine.models.config import ModelConfig
from rsd_engine.roofline.formats import WeightFormat


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model in one dtype, its weights perhaps in another format."""

    num_parameters: int  # all weights, but for the head of a PRM
    body_parameters: int  # the layers: every row is multiplied by them
    head_parameters: int  # the LM head: rows whose next token is sampled are multiplied by it
    attention_width: int  # query channels of all layers together
    kv_bytes_per_token: int
    bytes_per_parameter: float  # of the layers
    embedding_bytes_per_parameter: float | None = None  # of embedding and head, where it differs

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        dtype: torch.dtype | None = None,
        bytes_per_parameter: float | None = None,
        embedding_bytes_per_parameter: float | None = None,
        weights: WeightFormat | None = None,
    ) -> ModelShape:
        """The shape of a model.

        Args:
            config: its sizes.
            dtype: of weights, K and V; by default the checkpoint's own.
            bytes_per_parameter: of the weights, if it is not that of `dtype`.
            embedding_bytes_per_parameter: of embedding and head, if it is another.
            weights: their format, if they are quantised; what it leaves out takes the bytes above.
        """
        dtype = dtype or config.dtype
        embedding = config.vocab_size * config.hidden_size
        plain = bytes_per_parameter or dtype.itemsize
        of_embedding = None if weights else embedding_bytes_per_parameter
        has_own_head = not (config.tie_word_embeddings or config.is_reward_model)
        return cls(
            num_parameters=config.num_parameters,
            body_parameters=config.num_parameters - (1 + has_own_head) * embedding,
            head_parameters=0 if config.is_reward_model else embedding,
            attention_width=config.num_layers * config.q_width,
            kv_bytes_per_token=config.kv_shape(dtype).bytes_per_token,
            bytes_per_parameter=plain if weights is None else weights.bytes_per_parameter,
            embedding_bytes_per_parameter=plain if weights and not weights.whole else of_embedding,
        )

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return self._bytes_with(self.num_parameters - self.body_parameters)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a pass reads: all but the embedding, where it only looks up."""
        return self._bytes_with(self.head_parameters)

    def _bytes_with(self, embedding_parameters: int) -> int:
        """Of the layers and of so many weights of embedding and head."""
        each = self.embedding_bytes_per_parameter
        each = self.bytes_per_parameter if each is None else each
        return round(self.body_parameters * self.bytes_per_parameter + embedding_parameters * each)
