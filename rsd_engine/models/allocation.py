"""Where the weights of a model are put: into memory of their own, or they stay in their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.weight_form import WeightForm
from rsd_engine.models.weights import DecoderWeights
from rsd_kernels.formats.weight import StoredWeight, Weight
from rsd_kernels.linear.weight import LinearWeight

LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Allocation:
    """How weights are held, and the tensors of the checkpoint that they come from.

    Attributes:
        form: what they are held in.
        device: of the weights.
        stored: the tensors by name; needed only where matrices stay as they are stored.
    """

    form: WeightForm
    device: torch.device
    stored: Mapping[str, StoredTensor] = field(default_factory=dict)

    @classmethod
    def on_meta(cls) -> Allocation:
        """Takes no memory: all plain, for their shapes."""
        return cls(WeightForm.plain(torch.float32), torch.device("meta"))

    def decoder(self, config: ModelConfig) -> DecoderWeights:
        """Weights whose `places` are not filled yet."""
        form = self.form
        if form.matrix_dtype is not None:
            return DecoderWeights.allocate(config, form.dtype, self.device, form.matrix_dtype)
        matrices = {n: t.as_matrix() for n, t in self.stored.items() if t.is_matrix}
        return DecoderWeights.of_stored(config, form.dtype, matrices)

    def lm_head(self, config: ModelConfig, decoder: DecoderWeights) -> Weight:
        """The embedding if the model ties them."""
        if config.tie_word_embeddings:
            return decoder.tied_head()
        if isinstance(decoder.embedding, Tensor):
            return LinearWeight(torch.empty_like(decoder.embedding))
        return StoredWeight((self.stored[LM_HEAD].as_matrix(),))


def head_places(config: ModelConfig, lm_head: Weight) -> dict[str, Tensor]:
    """Name of the LM head in the checkpoint -> where it goes, if it is one of its own to fill."""
    if config.tie_word_embeddings or isinstance(lm_head, StoredWeight):
        return {}
    return {LM_HEAD: lm_head.matrix}
