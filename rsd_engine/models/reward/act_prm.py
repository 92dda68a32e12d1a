"""ActPRM (Duan et al., 2025): the mean over an ensemble of heads, fed as Qwen2.5-Math-PRM is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rsd_engine.models.decoders.qwen import QWEN2
from rsd_engine.models.reward.family import Tensors
from rsd_engine.models.reward.qwen_math_prm import QWEN_MATH_PRM
from rsd_kernels.reward.heads import MAX_ENSEMBLE, EnsembleHead

_NUM_HEADS = 8  # where the config does not say it
_REGULARISER = "score.reg_model."  # a copy of the heads as they were before training
_LAYERS = {"nn1": "inner", "nn2": "middle", "nn_out": "out"}


def _num_heads(raw: Mapping[str, Any]) -> dict[str, int]:
    found = raw.get("num_ensemble", _NUM_HEADS)
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= MAX_ENSEMBLE:
        raise ValueError(
            f"config.json: num_ensemble must be an integer in [1, {MAX_ENSEMBLE}], got {found!r}"
        )
    return {"num_heads": found}


def _without_regulariser(stored: Tensors, tokenizer: Callable[[], Any]) -> Tensors:
    del tokenizer
    return {name: t for name, t in stored.items() if not name.startswith(_REGULARISER)}


ACT_PRM = replace(
    QWEN_MATH_PRM,
    name="ActPRM",
    architectures={"Qwen2ForEnsemblePRM": QWEN2},
    head=EnsembleHead,
    head_tensors={
        f"score.model.{layer}.{kind}": f"{field}{suffix}"
        for layer, field in _LAYERS.items()
        for kind, suffix in (("weight", ""), ("bias", "_bias"))
    },
    head_sizes=_num_heads,
    prepare=_without_regulariser,
    threshold=0.5,  # from there on its evaluation calls a step correct
)
