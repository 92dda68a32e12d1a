"""`hf_overrides` replaces fields of a config.json, role by role."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine, SamplingParams
from tests.engine.harness.runs import PROMPTS, decisions, generate
from tests.tiny_models import CONTEXT, TinyModels

YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
GREEDY = SamplingParams(temperature=0.0, max_tokens=30)


def test_an_override_is_as_good_as_an_edited_file(tiny: TinyModels, tmp_path: Path) -> None:
    folder = tmp_path / "target"
    shutil.copytree(tiny.target, folder)
    config = json.loads((folder / "config.json").read_text()) | YARN
    (folder / "config.json").write_text(json.dumps(config))
    results = []
    for source, overrides in ((folder, None), (tiny.target, {"target": YARN}), (tiny.target, {})):
        with Engine(target=source, device="cpu", hf_overrides=overrides) as engine:
            assert engine.parts.rules.max_model_len == (CONTEXT if overrides == {} else 2 * CONTEXT)
            results.append([decisions(r) for r in generate(engine, PROMPTS, GREEDY)])
    assert results[0] == results[1] != results[2]


def test_each_role_has_its_own(tiny: TinyModels) -> None:
    overrides: dict[str, Any] = {"draft": YARN, "target": {"max_position_embeddings": 600}}
    with Engine(**tiny.sources(), device="cpu", hf_overrides=overrides) as engine:
        assert engine.parts.rules.max_model_len == 600


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"writer": {}}, "hf_overrides has 'writer'; the roles here are ['target']"),
        ({"draft": {}}, "hf_overrides has 'draft'"),
        ({"target": [1]}, "hf_overrides['target'] must be a dict of fields of config.json"),
        ([1], "hf_overrides must be a dict by role, got [1]"),
        ({"target": {"hidden_size": "big"}}, "config.json: hidden_size must be an integer"),
    ],
)
def test_bad_overrides(tiny: TinyModels, overrides: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        Engine(target=tiny.target, device="cpu", hf_overrides=overrides)
    assert words in str(error.value)
