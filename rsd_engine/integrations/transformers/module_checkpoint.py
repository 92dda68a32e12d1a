"""A model of transformers in memory as a checkpoint, from which an engine takes its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rsd_engine.models.checkpoints.base import Checkpoint, StoredTensor
from rsd_engine.models.checkpoints.open import load_tokenizer, open_checkpoint


class ModuleCheckpoint(Checkpoint):
    """A module with a config, as `from_pretrained` gives it.

    Weights that the engine computes with as they are stay the module's own memory. What it merges
    (q, k and v; gate and up), or holds in another dtype, it copies.

    Args:
        module: on one device.
        tokenizer: of the model; None reads that of the checkpoint which the module was loaded from.

    Raises:
        ValueError: the module has no config, or its weights are on several devices.
    """

    def __init__(self, module: nn.Module, tokenizer: Any = None) -> None:
        self._config: Any = getattr(module, "config", None)
        if self._config is None:
            raise ValueError(
                f"got a {type(module).__name__} without a config; give a model of transformers"
            )
        # No path: two modules that were loaded from one folder need not be alike any more.
        self._name: str = getattr(module, "name_or_path", "")
        self.source = f"{self._name or type(module).__name__} (in memory)"
        self._module = module
        self._tokenizer = tokenizer
        devices = sorted({str(parameter.device) for parameter in module.parameters()})
        if len(devices) != 1:
            raise ValueError(
                f"the weights of {self.source} are on {devices}; they must be on one device"
            )

    def config(self) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(self._config.to_json_string(use_diff=False))
        dtype = next(self._module.parameters()).dtype
        own = {
            "architectures": [type(self._module).__name__],
            "dtype": str(dtype).removeprefix("torch."),
            "_name_or_path": self._name,
        }
        return {**found, **own, **self.overrides}

    def tensors(self) -> Mapping[str, StoredTensor]:
        return {name: _stored(tensor) for name, tensor in self._module.state_dict().items()}

    def tokenizer(self) -> Any:
        if self._tokenizer is not None:
            return self._tokenizer
        if not self._name:
            raise ValueError("it was not loaded from a checkpoint; pass its tokenizer")
        return load_tokenizer(open_checkpoint(self._name, weights=False))

    def generation_config(self) -> dict[str, Any] | None:
        found = getattr(self._module, "generation_config", None)
        return None if found is None else json.loads(found.to_json_string(use_diff=False))


def _stored(tensor: Tensor) -> StoredTensor:
    return StoredTensor(tuple(tensor.shape), tensor.dtype, "memory", tensor.nbytes, lambda: tensor)
