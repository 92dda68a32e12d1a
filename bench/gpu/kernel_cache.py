"""The cache of compiled kernels: put into use, and what was compiled after all."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any


def use_cache() -> dict[str, Any]:
    """Puts the cache that was carried here into use, for this process and those that it starts.

    Returns:
        What `bench.gpu.cache.check` says; only why it does not fit, if it cannot say that.
    """
    try:
        found: dict[str, Any] = importlib.import_module("bench.gpu.cache").check()
    except Exception as error:  # kernels are then compiled, which is slow, but no reason to stop
        return {"fits": False, "why": f"{type(error).__name__}: {error}"}
    return found


def compiled_kernels() -> set[str]:
    """Kernels in Triton's cache, each as the folder and the name of its machine code."""
    folder = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    return {f"{found.parent.name}/{found.stem}" for found in Path(folder).glob("*/*.cubin")}
