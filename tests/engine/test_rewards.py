"""The PRM keeps its cache and reads only the new step; its rewards are those of a full read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from rsd_engine import Engine, SamplingParams
from tests.engine.support import PROMPTS, Fresh, generate, harsh, prm_rows, scores
from tests.tiny_models import TinyModels

PARAMS = [
    SamplingParams(temperature=t, seed=s, max_tokens=40, max_step_tokens=m)
    for s, (t, m) in enumerate(
        [(0.0, None), (1.0, None), (1.0, 6), (0.7, 9), (0.0, 5), (1.2, None)]
    )
]


@pytest.mark.parametrize("roughly", [False, True], ids=["plain", "preempted"])
def test_rewards_equal_a_full_read(engine: Engine, roughly: bool) -> None:
    if roughly:
        with harsh(engine):
            results = generate(engine, PROMPTS, PARAMS)
    else:
        results = generate(engine, PROMPTS, PARAMS)
    fresh, seen = Fresh(engine), []
    for result in results:
        rows = prm_rows(engine, result)
        assert len(rows) == len(scores(result)) > 0
        for row, reward in zip(rows, scores(result), strict=True):
            assert reward == pytest.approx(fresh.reward(row), abs=1e-5)
            seen.append(reward)
    assert len(seen) > 25 and max(seen) - min(seen) > 0.3


def test_rewards_equal_transformers(engine: Engine, tiny: TinyModels) -> None:
    config = AutoConfig.from_pretrained(tiny.prm)
    backbone = AutoModel.from_config(config).eval()
    weights = load_file(tiny.prm / "model.safetensors")
    head = {name: weights.pop(name) for name in list(weights) if name.startswith("v_head")}
    backbone.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
    assert json.loads((tiny.prm / "config.json").read_text())["model_type"] == config.model_type
    for result in generate(engine, PROMPTS[:3], PARAMS[:3]):
        for row, reward in zip(prm_rows(engine, result), scores(result), strict=True):
            with torch.no_grad():
                hidden = backbone(torch.tensor([row])).last_hidden_state[0, -1]
            logit = hidden @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]
            assert reward == pytest.approx(float(logit.sigmoid()), abs=1e-5)


def test_the_prm_reads_every_token_once(engine: Engine) -> None:
    preemptions = engine.num_preemptions
    for result in generate(engine, PROMPTS, PARAMS):
        rows = prm_rows(engine, result)
        expected, kept = 0, 0  # tokens read so far; of those, how many still stand
        scored = iter(rows)
        prm = engine._built.models.prm
        assert prm is not None
        row = prm.format.prompt_ids(result.prompt or "")
        for step in result.outputs[0].steps:
            if step.rejected:
                draft_row = next(scored)
                expected += len(draft_row) - kept
                kept = len(row)  # the step is forgotten, what was before it stays
            text = step.text.removesuffix("\n\n")
            ids = prm.format.encoder.encode(text, add_special_tokens=False).ids
            row = [*row, *ids, *prm.format.separator_ids]
            if step.reward is not None:
                assert next(scored) == row
                expected += len(row) - kept
                kept = len(row)
        assert result.metrics.prm.tokens_read == expected
    assert engine.num_preemptions == preemptions
