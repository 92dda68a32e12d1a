"""PURE-PRM-7B (Cheng et al., 2025): token classification, the reward from -1 to 1."""

from __future__ import annotations

from dataclasses import replace

from rsd_engine.models.decoders.qwen import QWEN2
from rsd_engine.models.reward.family import named
from rsd_engine.models.reward.token_classification import TRL

PURE = replace(
    TRL,
    name="PURE-PRM",
    architectures={"Qwen2ForTokenClassification": QWEN2},
    recognise=named("pure-prm"),
    reward_range=(-1.0, 1.0),  # p(good) - p(bad)
    threshold=0.0,  # from there on its card calls a step correct
)
