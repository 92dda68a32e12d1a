"""Decoding of transformers' `generate` by RSD, with models that are in memory already.

`generate` takes what `model.generate` takes; `reward_guided` is a callable for its
`custom_generate`; `examples/custom_generate` is a folder for its text form.
"""

from __future__ import annotations

from rsd_engine.integrations.transformers.decoding import reward_guided
from rsd_engine.integrations.transformers.generate import generate
from rsd_engine.integrations.transformers.results import RewardGuidedOutput

__all__ = ["RewardGuidedOutput", "generate", "reward_guided"]
