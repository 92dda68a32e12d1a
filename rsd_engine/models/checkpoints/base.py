"""The one face behind which a model's files stand, however they are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


class Checkpoint(ABC):
    """The config, weights and tokenizer of one model, read when asked for."""

    source: str  # as the user named it, for messages

    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The config in the spelling of a config.json."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor once, on the CPU, under the names transformers gives them."""

    @abstractmethod
    def has_bfloat16_matrices(self) -> bool:
        """True if every matrix among the tensors is stored in bfloat16."""

    @abstractmethod
    def tokenizer(self) -> Any:
        """The transformers tokenizer (a PreTrainedTokenizerBase)."""

    @abstractmethod
    def generation_config(self) -> dict[str, Any] | None:
        """Sampling defaults of the checkpoint, None if it brings none."""
