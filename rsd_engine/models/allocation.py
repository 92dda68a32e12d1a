"""Where the weights of a model are put: into memory of their own, or they stay in their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.weight_form import WeightForm, grouped_names
from rsd_engine.models.weights import DecoderWeights, Grouped, HeadWeight, nothing_grouped
from rsd_kernels.formats.weight import StoredWeight
from rsd_kernels.grouped.matrix import GroupedMatrix
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
        """Weights whose `places` are not filled yet.

        Raises:
            ValueError: a matrix that stays in few bits cannot be read, or not be merged with
                others; the message names it.
        """
        form = self.form
        if form.matrix_dtype is not None:
            grouped = self._grouped_of() if form.grouped else nothing_grouped
            return DecoderWeights.allocate(config, form.dtype, self.device, grouped)
        matrices = {n: t.as_matrix() for n, t in self.stored.items() if t.is_matrix}
        return DecoderWeights.of_stored(config, form.dtype, matrices)

    def _grouped_of(self) -> Grouped:
        kept = grouped_names(self.stored)

        def grouped(names: Sequence[str]) -> GroupedMatrix | None:
            if not kept.issuperset(names):
                return None
            sources = [self.stored[name].grouped for name in names]
            made = [source.make(self.device) for source in sources if source is not None]
            first = made[0]
            if not all(first.fits(part) for part in made):
                formats = sorted({str(self.stored[name].packing) for name in names})
                raise ValueError(
                    f"tensors {', '.join(names)} are stored as {' and '.join(formats)} in groups "
                    "of different inputs or sizes (g_idx of act-order), and a GPU reads them as "
                    "one; take a checkpoint that quantises them alike, or one of plain weights"
                )
            return first if len(made) == 1 else GroupedMatrix.merge(made)

        return grouped

    def lm_head(self, config: ModelConfig, decoder: DecoderWeights) -> HeadWeight:
        """The embedding if the model ties them."""
        if config.tie_word_embeddings:
            return decoder.tied_head()
        if isinstance(decoder.embedding, Tensor):
            return LinearWeight(torch.empty_like(decoder.embedding))
        return StoredWeight((self.stored[LM_HEAD].as_matrix(),))


def head_places(config: ModelConfig, lm_head: HeadWeight) -> dict[str, Tensor]:
    """Name of the LM head in the checkpoint -> where it goes, if it is one of its own to fill."""
    if config.tie_word_embeddings or isinstance(lm_head, StoredWeight):
        return {}
    return {LM_HEAD: lm_head.matrix}
