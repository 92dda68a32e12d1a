"""Engines of models in memory: made once, used again, and gone when a model is."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rsd_engine import Engine
from rsd_engine.integrations.transformers.module_checkpoint import ModuleCheckpoint

Source = nn.Module | str | Path | None
"""A model in memory, or what `Engine` takes; None where a scorer takes the place of the PRM."""

_Weights = tuple[tuple[int, int], ...]  # (address, version) of every tensor


@dataclass(frozen=True)
class Models:
    """The three models of a call, with the tokenizers of those in memory."""

    draft: Source
    target: nn.Module
    prm: Source
    draft_tokenizer: Any = None
    tokenizer: Any = None
    prm_tokenizer: Any = None

    @property
    def modules(self) -> list[nn.Module]:
        return [m for m in (self.draft, self.target, self.prm) if isinstance(m, nn.Module)]

    def key(self) -> tuple[object, ...]:
        return tuple(
            id(m) if isinstance(m, nn.Module) else m and str(m)
            for m in (self.draft, self.target, self.prm)
        )

    def weights(self) -> _Weights:
        """Changes when a weight is replaced or written to."""
        tensors = [t for module in self.modules for t in module.state_dict().values()]
        return tuple((tensor.data_ptr(), _version(tensor)) for tensor in tensors)


@dataclass(frozen=True)
class _Made:
    engine: Engine
    options: Mapping[str, Any]
    weights: _Weights


class Engines:
    """One engine for each draft, target and PRM, as long as those in memory live."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], _Made] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._made)

    def find(self, models: Models, options: Mapping[str, Any]) -> Engine:
        """The engine of these models; a new one if weights or options are not those of the old.

        Args:
            models: of the call.
            options: arguments of `Engine`.

        Raises:
            ValueError, MemoryError: see `Engine`.
        """
        with self._lock:
            key, weights = models.key(), models.weights()
            found = self._made.get(key)
            if found is not None and found.options == options and found.weights == weights:
                return found.engine
            self._forget(key)
            self._made[key] = _Made(_engine(models, options), dict(options), weights)
            for module in models.modules:
                weakref.finalize(module, self._forget, key).atexit = False
            return self._made[key].engine

    def _forget(self, key: tuple[object, ...]) -> None:
        """Without the lock: a model may go, and its engine with it, at any moment of any thread."""
        made = self._made.pop(key, None)
        if made is not None:
            made.engine.close()


def _engine(models: Models, options: Mapping[str, Any]) -> Engine:
    checkpoints: dict[int, ModuleCheckpoint] = {}  # of a model with two roles there is one

    def source(model: Source, tokenizer: Any) -> Any:
        if not isinstance(model, nn.Module):
            return model
        return checkpoints.setdefault(id(model), ModuleCheckpoint(model, tokenizer))

    target = source(models.target, models.tokenizer)
    return Engine(
        source(models.draft, models.draft_tokenizer),
        target,
        source(models.prm, models.prm_tokenizer),
        **{"device": next(models.target.parameters()).device, **options},
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
