"""The model `rsd` of lm-evaluation-harness; importing this registers it."""

from __future__ import annotations

try:
    import lm_eval  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rsd_engine.integrations.lm_eval needs the package {error.name!r}; install "
        "rsd-engine[lm-eval]",
        name=error.name,
    ) from None

from rsd_engine.integrations.lm_eval.arguments import ModelArgumentError
from rsd_engine.integrations.lm_eval.model import RsdLM

__all__ = ["ModelArgumentError", "RsdLM"]
