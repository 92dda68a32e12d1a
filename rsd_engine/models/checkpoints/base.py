"""What every checkpoint offers, however its files are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor


class Checkpoint(ABC):
    """The config, weights and tokenizer of one model, each read when it is asked for."""

    source: str  # what the user called it, for messages
    overrides: Mapping[str, Any] = MappingProxyType({})  # of the user, for single keys of `config`

    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The config with the keys of a config.json."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor once, on the CPU, under its name in transformers."""

    @abstractmethod
    def has_bfloat16_matrices(self) -> bool:
        """True if every matrix among the tensors is stored in bfloat16."""

    @abstractmethod
    def tokenizer(self) -> Any:
        """The transformers tokenizer (a PreTrainedTokenizerBase)."""

    @abstractmethod
    def generation_config(self) -> dict[str, Any] | None:
        """End-of-text ids and sampling defaults, None if the checkpoint has none."""
