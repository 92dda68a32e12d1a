"""The demo family: three tiny models trained for this package, and the problems they solve."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

ModelRole = Literal["draft", "target", "prm"]
ROLES: tuple[ModelRole, ...] = ("draft", "target", "prm")


def checkpoint_dir(role: ModelRole) -> Path:
    """The folder of a demo model; FileNotFoundError if it is not part of this installation."""
    folder = Path(__file__).parent / "checkpoints" / role
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no demo checkpoint for the role {role!r} at {folder}")
    return folder
