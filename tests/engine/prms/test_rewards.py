"""The PRM keeps its cache and reads only the new step; its rewards are those of a full read.

With both heads, at every scored step of runs that keep steps and reject others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from rsd_engine import Engine, RequestOutput, SamplingParams, Threshold
from tests.engine.harness.runs import PROMPTS, Fresh, generate, harsh, prm_rows, scores
from tests.models.checkpoints import PrmHeads
from tests.tiny_models import TinyModels, make_tiny_models

PARAMS = [
    SamplingParams(temperature=t, seed=s, max_tokens=40, max_step_tokens=m, ignore_eos=True)
    for s, (t, m) in enumerate(
        [(0.0, None), (1.0, None), (1.0, 6), (0.7, 9), (0.0, 5), (1.2, None)]
    )
]
_MATH_PRM_PROMPT = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within "
    "\\boxed{{}}.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)


def skywork_input(tokenizer: Any, question: str, steps: list[str]) -> list[int]:
    """Question and newline after bos; the blank line's last token after every step."""
    separator = tokenizer.encode("\n\n", add_special_tokens=False)[-1]
    row = tokenizer.encode(f"{tokenizer.bos_token}{question}\n", add_special_tokens=False)
    for step in steps:
        row += [*tokenizer.encode(step, add_special_tokens=False), separator]
    return row


def math_prm_input(tokenizer: Any, question: str, steps: list[str]) -> list[int]:
    """The whole conversation as one text, as the model card has it."""
    text = _MATH_PRM_PROMPT.format(question=question) + "".join(f"{s}<extra_0>" for s in steps)
    return tokenizer.encode(text, add_special_tokens=False)


@dataclass(frozen=True)
class Scorer:
    """An engine, and its PRM as transformers runs it."""

    engine: Engine
    prm: Path
    full_input: Callable[..., list[int]]
    reward: Callable[[Tensor, dict[str, Tensor]], Tensor]


@pytest.fixture(scope="module", params=["value", "two-class"])
def scorer(
    request: pytest.FixtureRequest, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scorer]:
    models, recipe = tiny, (skywork_input, PrmHeads.value_reward)
    if request.param == "two-class":
        models = make_tiny_models(tmp_path_factory.mktemp("two_class"), two_class=True)
        recipe = (math_prm_input, PrmHeads.two_class_reward)
    with Engine(**models.sources(), policy=Threshold(0.4), max_num_seqs=4, device="cpu") as engine:
        assert engine.parts.core.loop.merges is not None, "the steps would go through text"
        yield Scorer(engine, models.prm, *recipe)


def check_the_mixture(results: list[RequestOutput]) -> None:
    """The comparison must mean something: many rewards, far apart, kept and rejected."""
    seen = [reward for result in results for reward in scores(result)]
    steps = [step for result in results for step in result.outputs[0].steps]
    assert len(seen) > 25 and max(seen) - min(seen) > 0.3
    assert sum(s.rejected is not None for s in steps) > 5
    assert sum(s.reward is not None for s in steps) > 5


def run(engine: Engine, roughly: bool) -> list[RequestOutput]:
    if not roughly:
        return generate(engine, PROMPTS, PARAMS)
    with harsh(engine):
        return generate(engine, PROMPTS, PARAMS)


@pytest.mark.parametrize("roughly", [False, True], ids=["plain", "preempted"])
def test_rewards_equal_a_full_read(scorer: Scorer, roughly: bool) -> None:
    results, fresh = run(scorer.engine, roughly), Fresh(scorer.engine)
    for result in results:
        rows = prm_rows(scorer.engine, result)
        assert len(rows) == len(scores(result)) > 0
        for row, reward in zip(rows, scores(result), strict=True):
            assert reward == pytest.approx(fresh.reward(row), abs=1e-5)
    check_the_mixture(results)


@pytest.mark.parametrize("roughly", [False, True], ids=["plain", "preempted"])
def test_rewards_equal_transformers(scorer: Scorer, roughly: bool) -> None:
    """Its tokenizer, its forward over the whole input, the head applied by hand."""
    tokenizer = AutoTokenizer.from_pretrained(scorer.prm)
    weights = load_file(scorer.prm / "model.safetensors")
    head = {n: weights.pop(n) for n in list(weights) if n.startswith(("v_head", "score"))}
    backbone = AutoModel.from_config(AutoConfig.from_pretrained(scorer.prm), dtype=torch.float32)
    backbone.load_state_dict({n.removeprefix("model."): w for n, w in weights.items()})
    results = run(scorer.engine, roughly)
    for result in results:
        kept: list[str] = []
        for step in result.outputs[0].steps:
            text = step.text.removesuffix("\n\n")
            scored = [(text, step.reward)] if step.reward is not None else []
            if step.rejected:
                scored = [(step.rejected.text.removesuffix("\n\n"), step.rejected.reward), *scored]
            for last, reward in scored:
                row = scorer.full_input(tokenizer, result.prompt, [*kept, last])
                with torch.no_grad():
                    hidden = backbone.eval()(torch.tensor([row])).last_hidden_state[0, -1]
                assert reward == pytest.approx(float(scorer.reward(hidden, head)), abs=1e-4)
            kept.append(text)
    check_the_mixture(results)


def test_the_prm_reads_every_token_once(scorer: Scorer) -> None:
    engine = scorer.engine
    preemptions = engine.num_preemptions
    for result in generate(engine, PROMPTS, PARAMS):
        rows = prm_rows(engine, result)
        expected, kept = 0, 0  # tokens read so far; of those, how many still stand
        scored = iter(rows)
        prm = engine.parts.models.prm
        assert prm is not None
        row = prm.format.prompt_ids(result.prompt or "")
        for step in result.outputs[0].steps:
            if step.rejected:
                draft_row = next(scored)
                expected += len(draft_row) - kept
                kept = len(row)  # the step is rolled back, what came before it stays
            text = step.text.removesuffix("\n\n")
            ids = prm.format.encoder.encode(text, add_special_tokens=False).ids
            row = [*row, *ids, *prm.format.separator_ids]
            if step.reward is not None:
                assert next(scored) == row
                expected += len(row) - kept
                kept = len(row)
        counted = result.metrics.prm
        assert counted.tokens_read + counted.cached_tokens == expected
    assert engine.num_preemptions == preemptions
