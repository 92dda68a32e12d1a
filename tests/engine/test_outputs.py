"""Results: JSON, metrics that add up, names of things, the engine's own life."""

from __future__ import annotations

import inspect
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine, FinishedEvent, SamplingParams, Threshold
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import PROMPTS, decisions, generate
from tests.engine.harness.scripted import spoiled
from tests.tiny_models import TinyModels

PARAMS = SamplingParams(temperature=1.0, seed=9, max_tokens=30, logprobs=2, n=2)


def test_results_are_json(engine: Engine) -> None:
    with spoiled(engine, Role.PRM, math.nan, prompt_length=2):
        results = generate(engine, ["x", PROMPTS[0]], PARAMS)
    for result in results:
        text = json.dumps(result.to_dict(), allow_nan=False)
        back = json.loads(text)
        assert back["outputs"][0]["text"] == result.outputs[0].text
        assert back["seed"] == 9 and back["finished"] is True
        assert back["metrics"]["acceptance_rate"] == result.metrics.acceptance_rate
    spoiled_step = results[0].to_dict()["outputs"][0]["steps"][0]
    assert spoiled_step["rejected"]["reward"] is None


def test_metrics_add_up(engine: Engine) -> None:
    before = engine.metrics
    results = generate(engine, PROMPTS, SamplingParams(temperature=1.0, seed=9, max_tokens=30))
    parameters = engine.parts.models.num_parameters
    for result in results:
        steps, metrics = result.outputs[0].steps, result.metrics
        by_draft = sum(len(s.token_ids) for s in steps if s.source == "draft")
        by_target = sum(len(s.token_ids) for s in steps if s.source == "target")
        discarded = sum(len(s.rejected.token_ids) for s in steps if s.rejected)
        assert metrics.draft.tokens_generated == by_draft
        assert metrics.draft.tokens_discarded == discarded
        assert metrics.target.tokens_generated == by_target
        assert metrics.steps_accepted == sum(s.source == "draft" for s in steps)
        assert metrics.steps_rejected == sum(s.rejected is not None for s in steps)
        wanted = parameters[Role.DRAFT] + parameters[Role.PRM]
        assert metrics.flops.generated == 2 * (
            wanted * (by_draft + discarded) + parameters[Role.TARGET] * by_target
        )
        read = {Role.DRAFT: metrics.draft, Role.TARGET: metrics.target, Role.PRM: metrics.prm}
        assert metrics.flops.all == sum(2 * parameters[r] * m.tokens_read for r, m in read.items())
        # Without preemption the draft reads prompt and text once, but for the last token.
        text = len(result.prompt_token_ids) + by_draft + by_target
        assert text - 1 <= metrics.draft.tokens_read + by_target <= text + discarded + 2 * by_target
        assert metrics.seconds > 0
        for role, done in read.items():
            was_needed = role != Role.TARGET or by_target > 0
            assert (done.passes > 0) == (done.seconds > 0) == (done.tokens_read > 0) == was_needed
    after = engine.metrics
    for name in ("tokens_generated", "tokens_discarded", "tokens_read", "passes"):
        for model in ("draft", "target", "prm"):
            gained = getattr(getattr(after, model), name) - getattr(getattr(before, model), name)
            assert gained == sum(getattr(getattr(r.metrics, model), name) for r in results)
    for name in ("steps_accepted", "steps_rejected"):
        gained = getattr(after, name) - getattr(before, name)
        assert gained == sum(getattr(r.metrics, name) for r in results)
    assert after.flops.all - before.flops.all == sum(r.metrics.flops.all for r in results)
    # Requests share passes, and their seconds add up to less than all launches took.
    spent = sum(
        role.seconds for r in results for role in (r.metrics.draft, r.metrics.target, r.metrics.prm)
    )
    assert 0 < spent < after.seconds - before.seconds


def test_prompts_in_every_shape(engine: Engine) -> None:
    ids = engine.get_tokenizer().encode("What is 2 + 2?")
    params = SamplingParams(temperature=0.0, max_tokens=10)
    text, tokens, both, listed = (
        engine.generate(prompt, params, use_tqdm=False)[0]
        for prompt in (
            "What is 2 + 2?",
            ids,
            {"prompt_token_ids": ids, "question": "What is 2 + 2?"},
            ["What is 2 + 2?"],
        )
    )
    assert text.prompt == "What is 2 + 2?" == tokens.prompt
    assert list(text.prompt_token_ids) == ids
    assert decisions(text) == decisions(tokens) == decisions(both) == decisions(listed)
    other = {"prompt": "What is 2 + 2?", "question": "Name a colour."}
    [asked] = engine.generate(other, params, use_tqdm=False)
    rewards = [
        next(s.rejected.reward if s.rejected else s.reward for s in r.outputs[0].steps)
        for r in (asked, text)
    ]
    assert rewards[0] != rewards[1]  # the PRM read another question
    assert engine.generate([], params, use_tqdm=False) == []


def test_chat_has_one_bos_and_asks_the_prm_the_last_question(engine: Engine) -> None:
    messages = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Second?"},
    ]
    params = SamplingParams(temperature=0.0, max_tokens=12)
    [result] = engine.chat(messages, params, use_tqdm=False)
    bos = engine.get_tokenizer().bos_token_id
    assert result.prompt_token_ids[0] == bos and result.prompt_token_ids.count(bos) == 1
    raw = {"prompt_token_ids": list(result.prompt_token_ids), "question": "Second?"}
    [same] = engine.generate(raw, params, use_tqdm=False)
    assert decisions(result) == decisions(same)
    several = engine.chat([messages, messages[:1]], params, use_tqdm=False)
    assert decisions(several[0]) == decisions(result) and len(several) == 2


def test_defaults_come_from_the_checkpoint(engine: Engine, tiny: TinyModels) -> None:
    assert engine.get_default_sampling_params() == SamplingParams(temperature=0.0)
    [default] = engine.generate([PROMPTS[5]], use_tqdm=False)
    [greedy] = generate(engine, [PROMPTS[5]], SamplingParams(temperature=0.0))
    assert decisions(default) == decisions(greedy)


def test_sampling_defaults_of_a_checkpoint_are_honoured_and_said(
    tiny: TinyModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "target"
    shutil.copytree(tiny.target, folder)
    values: dict[str, Any] = {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
    }
    generation = {"do_sample": True, "eos_token_id": [1], "max_length": 99, **values}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    with caplog.at_level(logging.INFO, "rsd_engine"), Engine(target=folder, device="cpu") as own:
        assert own.get_default_sampling_params() == SamplingParams(**values)
    assert "sampling defaults of the checkpoint" in caplog.text and "top_k=20" in caplog.text


def test_arguments_and_their_defaults() -> None:
    """The constructor as the README promises it."""
    found = {n: p.default for n, p in inspect.signature(Engine).parameters.items()}
    assert found == {
        "draft": None, "target": None, "prm": None, "policy": None, "device": "auto",
        "dtype": "auto", "max_num_seqs": 16, "max_model_len": None, "kv_cache_memory_bytes": None,
        "gpu_memory_utilization": 0.9, "step_delimiters": "auto", "step_ends": "text",
        "revision": None, "hf_overrides": None, "quantization": None, "executor": "auto",
        "max_guesses": 0, "enable_prefix_caching": True, "prm_format": None, "prm_separator": None,
        "scorer": None,
    }  # fmt: skip
    assert Threshold() == Threshold(0.7)


def test_progress(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[dict[str, object]] = []

    class Bar:
        def __init__(self, **options: object) -> None:
            made.append(options)
            self.count = 0

        def update(self, n: int) -> None:
            made[-1]["count"] = self.count = self.count + n

        def close(self) -> None:
            made[-1]["closed"] = True

    engine.generate(["a", "b"], SamplingParams(max_tokens=2), use_tqdm=Bar)
    assert made[0]["total"] == 2 == made[0]["count"] and made[0]["closed"]
    engine.generate(["a"], SamplingParams(max_tokens=2), use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_context_manager_and_close(tiny: TinyModels) -> None:
    with Engine(**tiny.sources(), policy=Threshold(0.5), device="cpu") as engine:
        stream = engine.stream("a", SamplingParams(max_tokens=50, ignore_eos=True))
    with pytest.raises(ValueError, match="closed"):
        engine.generate("a")
    # What still ran was aborted, and says so.
    *_, last = stream
    assert isinstance(last, FinishedEvent)
    assert last.output.outputs[0].finish_reason == "abort"


def test_the_log_says_what_was_loaded(tiny: TinyModels, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rsd_engine"), Engine(**tiny.sources(), device="cpu"):
        pass
    for part in ("draft:", "target:", "prm:", "KV:", "attention:", "executor:"):
        assert part in caplog.text


def test_a_hub_id_from_the_cache_when_offline(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = tmp_path / "models--someone--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / "0123abc").symlink_to(tiny.target, target_is_directory=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with Engine(target="someone/tiny", device="cpu") as engine:
        assert generate(engine, ["a"], SamplingParams(max_tokens=3))[0].outputs[0].token_ids
    with pytest.raises(ValueError, match="someone/absent"):
        Engine(target="someone/absent", device="cpu")
