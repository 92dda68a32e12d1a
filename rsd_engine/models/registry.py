"""The families that are built in: all that the modules of `decoders` and `reward` define.

To add one, add a file to its folder; nothing else has to name it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

from rsd_engine.models import decoders, reward
from rsd_engine.models.decoders.family import DecoderFamily
from rsd_engine.models.reward.family import RewardFamily

T = TypeVar("T")


@cache
def decoder_families() -> dict[str, DecoderFamily]:
    """Every base architecture, by its name in config.json."""
    return {family.architecture: family for family in _defined_in(decoders, DecoderFamily)}


@cache
def reward_families() -> dict[str, RewardFamily]:
    """Every family of PRMs, by the architectures of its checkpoints in config.json."""
    families = _defined_in(reward, RewardFamily)
    return {name: family for family in families for name in family.architectures}


def _defined_in(package: ModuleType, kind: type[T]) -> list[T]:
    names = [f"{package.__name__}.{found.name}" for found in iter_modules(package.__path__)]
    values = [value for name in names for value in vars(import_module(name)).values()]
    return [value for value in values if isinstance(value, kind)]
