"""A LoRA adapter (Hu et al., 2021), as peft saves it, merged into its base when it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import Checkpoint, StoredTensor
from rsd_engine.models.checkpoints.tokenizer_folder import folder_tokenizer
from rsd_engine.models.checkpoints.weight_files import listing, stored_tensors
from rsd_engine.models.schemas import read_json

_CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# Each changes what is merged: setting -> values that mean "not used".
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "use_dora": (None, False),
    "modules_to_save": (None, []),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
}


def is_adapter(folder: Path) -> bool:
    """True if the folder holds an adapter and no weights of a whole model."""
    whole = ("model*.safetensors*", "pytorch_model*.bin*")
    return (folder / _CONFIG).is_file() and not any(any(folder.glob(name)) for name in whole)


def base_folder(adapter: Path) -> Path:
    """The folder of the model that an adapter belongs to, which its config names.

    A relative path is looked for from where the process runs, then from the adapter's folder.

    Raises:
        ValueError: the config names no folder of a model.
    """
    name = read_json(adapter / _CONFIG).get("base_model_name_or_path")
    if isinstance(name, str) and name and "\0" not in name:
        for folder in (Path(name).expanduser(), adapter / name):
            if (folder / "config.json").is_file() and not is_adapter(folder):
                return folder
    raise ValueError(
        f"{adapter / _CONFIG}: base_model_name_or_path={name!r} is not a folder with a model; put "
        "the path of the base model's folder there"
    )


class AdapterCheckpoint(Checkpoint):
    """The base with the adapter's products added to its weights.

    Config and whatever the adapter's folder lacks are those of the base.

    Args:
        folder: of the adapter.
        base: the model that the adapter was trained on.

    Raises:
        ValueError: the adapter is not a plain LoRA.
    """

    def __init__(self, folder: Path, base: Checkpoint) -> None:
        self.folder = folder
        self.source = str(folder)
        self._base = base
        config = read_json(folder / _CONFIG)
        kind, rank, alpha = config.get("peft_type"), config.get("r"), config.get("lora_alpha")
        if kind != "LORA":
            raise ValueError(f"{folder / _CONFIG}: peft_type={kind!r} is not supported; only LORA")
        for name, unused in _UNSUPPORTED.items():
            if config.get(name) not in unused:
                raise ValueError(
                    f"{folder / _CONFIG}: {name}={config[name]!r} is not supported; merge the "
                    "adapter (peft: merge_and_unload) and save the whole model"
                )
        if not isinstance(rank, int) or not 0 < rank <= 2**20:
            raise ValueError(f"{folder / _CONFIG}: r={rank!r} must be from 1 to {2**20}")
        if not isinstance(alpha, int | float) or not abs(alpha) < 1e9:
            raise ValueError(f"{folder / _CONFIG}: lora_alpha={alpha!r} must be a number")
        self._rank = rank
        self._scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)

    def config(self) -> Mapping[str, Any]:
        return {**self._base.config(), **self.overrides}

    def tensors(self) -> Mapping[str, StoredTensor]:
        found = dict(self._base.tensors())
        for target, factors in self._factors().items():
            name = f"{target}.weight"
            if name not in found:
                raise ValueError(
                    f"adapter {self.source!r} changes {name}, which its base "
                    f"{self._base.source!r} does not hold; give the base that it was trained on"
                )
            found[name] = self._merged(name, found[name], factors)
        return found

    def _factors(self) -> dict[str, dict[str, StoredTensor]]:
        """Changed module -> its factors A [r, inputs] and B [outputs, r]."""
        found: dict[str, dict[str, StoredTensor]] = {}
        others = []
        for name, tensor in stored_tensors(self.folder, _FILES).items():
            if match := _FACTOR.fullmatch(name):
                found.setdefault(match[1], {})[match[2]] = tensor
            else:
                others.append(name)
        if others:
            raise ValueError(
                f"adapter {self.source!r} holds {listing(sorted(others))}; only lora_A and lora_B "
                "of linear layers can be merged: merge it with peft and save the whole model"
            )
        return found

    def _merged(
        self, name: str, base: StoredTensor, factors: dict[str, StoredTensor]
    ) -> StoredTensor:
        a, b = factors.get("A"), factors.get("B")
        if a is None or b is None:
            raise ValueError(f"adapter {self.source!r} has only one of lora_A and lora_B of {name}")
        wanted = (self._rank, base.shape[-1]), (base.shape[0], self._rank)
        if len(base.shape) != 2 or (a.shape, b.shape) != wanted:
            raise ValueError(
                f"adapter {self.source!r}: lora_A {list(a.shape)} and lora_B {list(b.shape)} of "
                f"{name} do not fit r={self._rank} and a weight of {list(base.shape)}; give the "
                "base that it was trained on"
            )
        for factor in (base, a, b):
            if not factor.dtype.is_floating_point or factor.dtype.itemsize < 2:
                raise ValueError(f"adapter {self.source!r}: {name} is merged from floats only")
        read = partial(_merge, base, a, b, self._scale)
        nbytes = base.nbytes + a.nbytes + b.nbytes
        return StoredTensor(base.shape, torch.float32, base.file, nbytes, read, base.packing)

    def weight_files(self) -> tuple[Path, ...]:
        own = {tensor.file for tensor in stored_tensors(self.folder, _FILES).values()}
        return (*self._base.weight_files(), *(self.folder / name for name in sorted(own)))

    def tokenizer(self) -> Any:
        if (self.folder / "tokenizer.json").is_file():
            return folder_tokenizer(self.folder)
        return self._base.tokenizer()

    def generation_config(self) -> dict[str, Any] | None:
        return self._base.generation_config()


def _merge(base: StoredTensor, a: StoredTensor, b: StoredTensor, scale: float) -> Tensor:
    return torch.addmm(base.read().float(), b.read().float(), a.read().float(), alpha=scale)
