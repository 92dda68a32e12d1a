"""The threshold where none is given: the one that an engine of the same arguments takes."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_engine import Confidence, PrmTemplate
from rsd_engine.cli.eval.settings import default_threshold
from tests.tiny_models import TinyModels

TEMPLATE = PrmTemplate("<|im_start|>{question}<|im_end|>", separator="<extra_0>", threshold=0.35)
CLASSIFIER = {"prm": {"architectures": ["Qwen2ForTokenClassification"]}}


@pytest.mark.parametrize(
    ("arguments", "threshold"),
    [
        ({"scorer": Confidence()}, 0.8),
        ({"prm": "http://127.0.0.1:1/v1"}, 0.7),
        ({}, 0.7),
        ({"prm": "{prm}"}, 0.7),  # of Skywork's family
        ({"prm": "{prm}", "hf_overrides": CLASSIFIER}, 0.5),
        ({"prm": "{prm}", "prm_format": TEMPLATE}, 0.35),
    ],
)
def test_it_is_that_of_the_scorer_or_the_family(
    arguments: dict[str, Any], threshold: float, tiny: TinyModels
) -> None:
    given = {
        name: str(tiny.prm) if value == "{prm}" else value for name, value in arguments.items()
    }
    assert default_threshold(given) == threshold


@pytest.mark.parametrize("source", ["draft", "nowhere"])
def test_what_is_no_prm_is_told(source: str, tiny: TinyModels) -> None:
    path = tiny.draft if source == "draft" else tiny.draft / source
    with pytest.raises(ValueError, match=r"^prm: .*" + str(path)):
        default_threshold({"prm": str(path)})
