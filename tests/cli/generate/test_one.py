"""`rsd generate PROMPT`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsd_engine import Confidence, Engine, SamplingParams, Threshold
from tests.cli.conftest import Rsd
from tests.tiny_models import TinyModels

MESSAGES = [{"role": "user", "content": "the sum"}]
OPTIONS = ["--max-tokens=60", "--temperature=1", "--policy=threshold:0.4", "--seed=15"]
PARAMS = SamplingParams(max_tokens=60, temperature=1.0, seed=15)


@pytest.fixture(scope="module")
def engine(tiny: TinyModels) -> Engine:
    return Engine(**tiny.sources(), policy=Threshold(0.4), max_num_seqs=2)


def test_prints_the_text_of_the_result(rsd: Rsd, model_args: list[str], engine: Engine) -> None:
    result = rsd("generate", "the sum", *model_args, *OPTIONS)
    [expected] = engine.chat(MESSAGES, PARAMS, use_tqdm=False)
    assert result.exit_code == 0
    assert result.stdout_bytes.decode() == expected.outputs[0].text + "\n"


@pytest.mark.parametrize("prompt", ["", "-"])
def test_an_empty_prompt_is_a_mistake(rsd: Rsd, model_args: list[str], prompt: str) -> None:
    result = rsd("generate", prompt, *model_args, *OPTIONS, input="\n")
    assert result.exit_code == 2
    assert "the prompt is empty" in result.stderr


def test_raw_text_stdin_and_json(rsd: Rsd, model_args: list[str], engine: Engine) -> None:
    result = rsd("generate", "-", *model_args, *OPTIONS, "--raw", "--json", input="the sum\n")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    [expected] = engine.generate("the sum", PARAMS, use_tqdm=False)
    assert record["outputs"][0]["token_ids"] == list(expected.outputs[0].token_ids)
    assert record["seed"] == PARAMS.seed
    assert record["metrics"]["steps_rejected"] == expected.metrics.steps_rejected
    [chat] = engine.chat(MESSAGES, PARAMS, use_tqdm=False)
    assert chat.outputs[0].token_ids != expected.outputs[0].token_ids


def test_show_steps(rsd: Rsd, model_args: list[str], engine: Engine) -> None:
    result = rsd("generate", "the sum", *model_args, *OPTIONS, "--show-steps")
    [expected] = engine.chat(MESSAGES, PARAMS, use_tqdm=False)
    tags = []
    for step in expected.outputs[0].steps:
        if step.rejected:
            tags.append(f"[rejected {step.rejected.reward:.2f}] ")
        tags.append("[target] " if step.reward is None else f"[draft {step.reward:.2f}] ")
    assert {tag[:6] for tag in tags} == {"[draft", "[rejec", "[targe"}
    at = -1
    for tag in tags:
        at = result.stdout.index(tag, at + 1)
    assert f"{expected.metrics.steps_accepted} of " in result.stderr


def test_samples(rsd: Rsd, model_args: list[str], engine: Engine) -> None:
    result = rsd("generate", "the sum", *model_args, *OPTIONS, "-n", "2")
    [expected] = engine.chat(
        MESSAGES, SamplingParams(n=2, max_tokens=60, temperature=1.0, seed=15), use_tqdm=False
    )
    first, second = (output.text for output in expected.outputs)
    assert first != second
    assert result.stdout_bytes.decode() == (
        f"--- sample 1 of 2 ---\n{first}\n--- sample 2 of 2 ---\n{second}\n"
    )


def test_guesses(rsd: Rsd, model_args: list[str], tmp_path: Path) -> None:
    """They are told of and change nothing else; a file of results says nothing of them."""
    asked = ["--max-guesses=8", "--speculate=rejected+draft", "--num-guesses=3"]
    common = ["generate", "the sum", *model_args, *OPTIONS]
    told = rsd(*common, *asked, "--show-steps").stderr
    records = [json.loads(rsd(*common, *more, "--json").stdout) for more in ([], asked)]
    assert records[0]["outputs"] == records[1]["outputs"]
    assert "guesses" not in records[0]["metrics"]
    found = records[1]["metrics"]["guesses"]
    made, kept = (sum(source[name] for source in found.values()) for name in ("made", "kept"))
    assert f"({kept} of {made} guesses right)" in told
    assert found["rejected"]["made"] > 0 and found["draft"]["made"] > 0
    assert records[1]["metrics"]["flops"] > records[0]["metrics"]["flops"]
    config, questions, results = (tmp_path / name for name in ("c.toml", "in.jsonl", "out.jsonl"))
    config.write_text('[engine]\nmax_guesses = 8\n[sampling]\nspeculate = "rejected"\n')
    questions.write_text('{"prompt": "the sum", "params": {"policy": "threshold:1"}}\n')
    files = [f"--config={config}", f"--input={questions}", f"--output={results}"]
    rsd("generate", *model_args, *OPTIONS, *files)
    record = json.loads(results.read_text())
    assert record["outputs"] and {"guesses", "flops"}.isdisjoint(record["metrics"])


def test_limits_are_said(rsd: Rsd, tiny: TinyModels) -> None:
    result = rsd("generate", "hi", f"--target={tiny.target}", "--max-tokens=3", "--n=1")
    assert result.exit_code == 0
    assert result.stderr == "note: cut off at the limit of max-tokens or the context\n"


def test_only_verbose_logs(rsd: Rsd, tiny: TinyModels, caplog: pytest.LogCaptureFixture) -> None:
    quiet = rsd("generate", "hi", f"--target={tiny.target}", "--max-tokens=3")
    assert "parameters" not in caplog.text
    loud = rsd("generate", "hi", f"--target={tiny.target}", "--max-tokens=3", "-v")
    assert "parameters" in caplog.text
    assert quiet.stdout == loud.stdout


def test_steps_may_end_elsewhere(rsd: Rsd, model_args: list[str]) -> None:
    def steps(*more: str) -> list[str]:
        result = rsd("generate", "the sum", *model_args, *OPTIONS, "--json", *more)
        return [step["text"] for step in json.loads(result.stdout)["outputs"][0]["steps"]]

    assert all(text.endswith("\n\n") for text in steps()[:-1])
    assert all("\n" not in text[:-1] for text in steps(r"--step-delimiter=\n"))
    assert len(steps("--no-steps")) == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["hi"], 2, "no model"),
        ([], 2, "no model"),
        (["hi", "--target=/no/such/model"], 1, "/no/such/model"),
        (["--target=T"], 2, "give either a prompt"),
        (["hi", "--target=T", "--input=x"], 2, "give either a prompt"),
        (["hi", "--target=T", "--output=x"], 2, "--output needs --input"),
        (["--target=T", "--input=x", "--overwrite"], 2, "--overwrite needs --output"),
        (["--target=T", "--input=x", "--show-steps"], 2, "are for one prompt"),
        (["hi", "--target=T", "--policy=clap"], 2, "policy = 'clap': unknown"),
        (["hi", "--target=T", "--temperature=-1"], 2, "temperature must be"),
        (["hi", "--target=T", "--mode=both"], 2, "mode must be"),
        (["hi", "--target=T", "--speculate=me"], 2, "speculate must be None, 'draft', 'rejected'"),
        (["hi", "--target=T", "--speculate=draft", "--num-guesses=65"], 2, "in [1, 64], got 65"),
        (["hi", "--target=T", r"--stop=\q"], 2, "unknown escape"),
        (["hi", "--target=T", "--kv-cache-memory=lots"], 2, "--kv-cache-memory must be a size"),
        (["hi", "--target=T", "--no-steps", "--step-delimiter=x"], 2, "exclude each other"),
    ],
)
def test_errors_are_one_line(rsd: Rsd, args: list[str], code: int, message: str) -> None:
    result = rsd("generate", *args)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_errors_of_the_engine_are_one_line(rsd: Rsd, tiny: TinyModels) -> None:
    target = f"--target={tiny.target}"
    for args, message in (
        (["--mode=rsd"], "mode='rsd' needs models that were not loaded"),
        (["--kv-cache-memory=1KB"], "kv_cache_memory_bytes=1000 cannot hold"),
        (["--max-num-seqs=0"], "max_num_seqs must be in"),
        (["--max-guesses=-1"], "max_guesses must be in [0, 256], got -1"),
        (["--speculate=ngram"], "make it with max_guesses=32"),
    ):
        result = rsd("generate", "hi", target, *args)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ") and message in result.stderr


def test_a_scorer_in_place_of_a_prm(rsd: Rsd, tiny: TinyModels) -> None:
    models = [f"--draft={tiny.draft}", f"--target={tiny.target}", "--json"]
    result = rsd("generate", "the sum", *models, *OPTIONS, "--scorer=confidence:entropy")
    assert result.exit_code == 0
    with Engine(
        tiny.draft, tiny.target, scorer=Confidence("entropy"), policy=Threshold(0.4)
    ) as engine:
        [expected] = engine.chat(MESSAGES, PARAMS, use_tqdm=False)
    steps = json.loads(result.stdout)["outputs"][0]["steps"]
    wanted = [s.reward and round(s.reward, 4) for s in expected.outputs[0].steps]
    assert [step["reward"] for step in steps] == wanted and any(wanted)
    result = rsd("generate", "the sum", *models, "--scorer=jury")
    assert result.exit_code == 2
    assert "scorer = 'jury': unknown; write one of judge," in result.stderr
    result = rsd("generate", "the sum", *models, "--scorer=judge", f"--prm={tiny.prm}")
    assert result.exit_code != 0
    assert "scorer and prm are both given" in result.stderr
