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
from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.decoders.family import DecoderFamily
from rsd_engine.models.reward.family import RewardFamily

T = TypeVar("T")


@cache
def decoder_families() -> dict[str, DecoderFamily]:
    """Every base architecture, by its name in config.json."""
    return {family.architecture: family for family in _defined_in(decoders, DecoderFamily)}


@cache
def reward_families() -> dict[str, RewardFamily]:
    """Every family of PRMs, by its name in small letters."""
    return {family.name.lower(): family for family in _defined_in(reward, RewardFamily)}


def reward_family(name: str) -> RewardFamily:
    """The family of this name, in any case.

    Raises:
        ValueError: there is none.
    """
    found = reward_families().get(name.lower())
    if found is None:
        raise ValueError(
            f"prm_format={name!r} is not known; one of {', '.join(sorted(reward_families()))}"
        )
    return found


def reward_architectures() -> dict[str, DecoderFamily]:
    """Every architecture of a PRM in config.json, with the decoder below its head."""
    families = reward_families().values()
    return {name: below for family in families for name, below in family.architectures.items()}


def find_reward_family(
    architecture: str, checkpoint: Checkpoint | None = None
) -> RewardFamily | None:
    """The family of a PRM; None if nothing tells it.

    Args:
        architecture: in config.json.
        checkpoint: asked where the architecture does not tell the family by itself.
    """
    families = [f for f in reward_families().values() if architecture in f.architectures]
    special = [f for f in families if f.recognise and checkpoint and f.recognise(checkpoint)]
    return next(iter(special + [f for f in families if f.recognise is None]), None)


def _defined_in(package: ModuleType, kind: type[T]) -> list[T]:
    names = [f"{package.__name__}.{found.name}" for found in iter_modules(package.__path__)]
    values = [value for name in names for value in vars(import_module(name)).values()]
    return [value for value in values if isinstance(value, kind)]
