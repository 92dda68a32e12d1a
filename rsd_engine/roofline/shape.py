"""What of a model's config decides how many bytes and operations a pass costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rsd_engine.models.config import ModelConfig


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model in one dtype."""

    num_parameters: int  # all weights; the head of a PRM is left out
    body_parameters: int  # what every row is multiplied by: the layers
    head_parameters: int  # what the last row of a sequence is multiplied by: the LM head
    attention_width: int  # query channels of all layers together
    kv_bytes_per_token: int
    bytes_per_parameter: int

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        dtype: torch.dtype | None = None,
        matrix_dtype: torch.dtype | None = None,
    ) -> ModelShape:
        """The shape of `config`.

        Args:
            config: sizes.
            dtype: of K and V and weights; the checkpoint's own by default.
            matrix_dtype: of the weights, where it is another.
        """
        dtype = dtype or config.dtype
        embedding = config.vocab_size * config.hidden_size
        has_own_head = not (config.tie_word_embeddings or config.is_reward_model)
        return cls(
            num_parameters=config.num_parameters,
            body_parameters=config.num_parameters - (1 + has_own_head) * embedding,
            head_parameters=0 if config.is_reward_model else embedding,
            attention_width=config.num_layers * config.q_width,
            kv_bytes_per_token=config.kv_shape(dtype).bytes_per_token,
            bytes_per_parameter=(matrix_dtype or dtype).itemsize,
        )

    @property
    def weight_bytes(self) -> int:
        """Memory the weights take."""
        return self.num_parameters * self.bytes_per_parameter

    @property
    def read_bytes(self) -> int:
        """Weights that a pass reads: all but the embedding, of which it reads a row a token."""
        return (self.body_parameters + self.head_parameters) * self.bytes_per_parameter
