"""The model `rsd` of lm-evaluation-harness: outputs, log-likelihoods, arguments."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import lm_eval.__main__
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from bench.compare.effect import answers, greedy_trials
from rsd_engine import Beam, Engine, SamplingParams, Softmax, Threshold
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate
from rsd_engine.evaluate.summary import summarise
from rsd_engine.integrations.lm_eval import ModelArgumentError, RsdLM
from rsd_engine.integrations.lm_eval.arguments import read_arguments, sampling_params
from tests.docs.documents import ROOT
from tests.integrations.conftest import TASKS, Harness

FOLDERS = ",".join(f"{role}={checkpoint_dir(role)}" for role in ("draft", "target", "prm"))
ARGUMENTS = f"{FOLDERS},threshold=0.7,device=cpu"
TEXTS = [
    "Tom has 3 apples. Tom buys 4 apples.\n\nTom now has 3 + 4 = 7 apples.",
    "The answer is \\boxed{12}.",
    "Nora has 12 pens.",
]


@pytest.fixture(scope="module")
def model() -> Iterator[RsdLM]:
    found = RsdLM.create_from_arg_string(ARGUMENTS)
    yield found
    found.close()


@pytest.fixture(scope="module")
def theirs() -> HFLM:
    """The harness' own model on the demo target."""
    folder = str(checkpoint_dir("target"))
    return HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)


def instances(kind: str, *arguments: tuple[Any, ...], **doc: Any) -> list[Instance]:
    return [Instance(kind, doc, found, index) for index, found in enumerate(arguments)]


def test_the_accuracy_is_that_of_the_benchmark(harness: Harness, model: RsdLM) -> None:
    _compare(harness, model, 20)


@pytest.mark.slow
def test_the_accuracy_is_that_of_the_benchmark_on_all_problems(
    harness: Harness, model: RsdLM
) -> None:
    _compare(harness, model, 500)


def _compare(harness: Harness, model: RsdLM, problems: int) -> None:
    """The same right answers, and the same texts, as `bench.effect` gets."""
    accuracy, texts, config = harness.run(model, problems)
    records = answers(model.engine, greedy_trials(["rsd"], [0.7]), generate(0, "test", problems))
    [row] = summarise(records)
    assert accuracy == row.accuracy
    assert texts == [record.text for record in records]
    told = config["rsd"]
    assert told["acceptance_rate"] == row.acceptance
    assert told["steps_rejected"] == row.counts.steps_rejected > 0


def test_log_likelihoods_are_those_of_transformers(model: RsdLM, theirs: HFLM) -> None:
    pairs = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in TEXTS]
    pairs += [("", TEXTS[2]), ("Tom now has 3 + 4", " = 7"), ("Tom now has 3 + 4", " = 9")]
    requests = instances("loglikelihood", *pairs)
    ours = model.loglikelihood(requests, disable_tqdm=True)
    wanted = theirs.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in wanted]
    assert {greedy for _, greedy in ours} == {True, False}
    logprobs = [logprob for logprob, _ in ours]
    assert logprobs == pytest.approx([logprob for logprob, _ in wanted], abs=1e-4)


def test_long_texts_are_read_in_windows(theirs: HFLM) -> None:
    requests = instances("loglikelihood_rolling", *((text * 3,) for text in TEXTS))
    arguments = {"target": str(checkpoint_dir("target")), "device": "cpu", "max_model_len": 34}
    short = RsdLM.create_from_arg_obj(arguments, {"batch_size": 1})
    try:
        ours = short.loglikelihood_rolling(requests, disable_tqdm=True)
        with pytest.raises(ValueError, match="a continuation has [0-9]+ tokens; with max_model_le"):
            short.loglikelihood(instances("loglikelihood", ("Tom", TEXTS[0] * 9)))
    finally:
        short.close()
    theirs._max_length = 32  # of which the window's last token is not read
    try:
        wanted = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    finally:
        theirs._max_length = None
    assert ours == pytest.approx(wanted, abs=1e-4)


def test_a_context_without_template_is_the_question(model: RsdLM) -> None:
    arguments: dict[str, Any] = {"until": ["answer"], "max_gen_toks": 60}
    [text] = model.generate_until(instances("generate_until", (TEXTS[0], arguments)))
    params = SamplingParams(temperature=0.0, max_tokens=60, stop=["answer"])
    [wanted] = model.engine.generate(TEXTS[0], params, use_tqdm=False)
    assert text == wanted.outputs[0].text != ""


def test_the_prm_reads_the_field_of_the_document(harness: Harness) -> None:
    engine = RsdLM.create_from_arg_string(f"{ARGUMENTS},question_field=problem,max_gen_toks=60")
    problem = generate(0, "test", 1)[0].question
    context = f"Solve this. {problem}"
    try:
        [text] = engine.generate_until(
            instances("generate_until", (context, {"until": []}), problem=problem)
        )
        prompt = {"prompt": context, "question": problem}
        params = SamplingParams(temperature=0.0, max_tokens=60)
        [wanted] = engine.engine.generate([prompt], params, use_tqdm=False)
        assert text == wanted.outputs[0].text
        with pytest.raises(ValueError, match=r"question_field='problem' is not in the documents"):
            engine.generate_until(instances("generate_until", (context, {}), question=problem))
    finally:
        engine.close()


def test_long_contexts_leave_room_for_the_output(model: RsdLM) -> None:
    context = "Tom has 3 apples. " * 400
    request = instances("generate_until", (context, {"max_gen_toks": 24, "mode": "target"}))
    with pytest.raises(ValueError, match="max_gen_toks=1024 leaves no room"):
        model.generate_until(instances("generate_until", ("Tom", {"max_gen_toks": 1024})))
    [text] = model.generate_until(request)
    ids = model.tok_encode(context)[-(model.max_length - 24) :]
    params = SamplingParams(temperature=0.0, max_tokens=24, mode="target")
    [wanted] = model.engine.generate([ids], params, use_tqdm=False)
    assert text == wanted.outputs[0].text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 256}),
        ({"until": "\n", "max_tokens": 9}, {"stop": "\n", "max_tokens": 9}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.8}, {"temperature": 0.0}),
        ({"temperature": 0.8, "top_p": 0.9, "top_k": 5}, {"temperature": 0.8, "top_p": 0.9}),
        ({"threshold": 0.9}, {"policy": Threshold(0.9)}),
        ({"policy": "threshold:0.4", "mode": "rsd"}, {"policy": Threshold(0.4), "mode": "rsd"}),
        ({"select": "beam:2"}, {"select": Beam(2), "step_candidates": 1}),
        ({"until": ["", "Q:"], "max_steps": 3}, {"stop": ["Q:"], "max_steps": 3}),
    ],
)
def test_generation_kwargs(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    params = sampling_params(given, read_arguments({}))
    assert {name: getattr(params, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, r"unknown generation_kwargs \['num_beams'\]; this model takes allowed"),
        ({"temperature": -1.0, "do_sample": True}, "temperature must be 0 or in"),
        ({"policy": "clip", "threshold": 0.5}, "policy and threshold exclude each other"),
        ({"max_gen_toks": 0}, "max_tokens must be in"),
        ({"max_gen_toks": "many"}, "max_tokens must be an integer"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"until": 5}, "stop must be a string or a list of strings, got 5"),
    ],
)
def test_wrong_generation_kwargs(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling_params(given, read_arguments({}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrained=gpt2", r"unknown arguments \['pretrained'\]; allowed: chat_template_kwargs"),
        (f"{FOLDERS},threshold=0.5,policy=clip", "policy and threshold exclude each other"),
        (f"{FOLDERS},policy=nonsense", "policy = 'nonsense': unknown; write one of"),
        (f"{FOLDERS},mode=both", "mode must be 'rsd', 'target' or 'draft', got 'both'"),
        ("draft=nowhere/at/all", "not a folder"),
        (f"{FOLDERS},max_gen_toks=few", "max_gen_toks must be an integer"),
        (f"{FOLDERS},kv_cache_memory_bytes=1", "kv_cache_memory_bytes"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: str, message: str) -> None:
    with pytest.raises(ModelArgumentError, match=message) as caught:
        RsdLM.create_from_arg_string(arguments)
    assert "\n" not in str(caught.value)


def test_arguments_of_the_engine_as_text() -> None:
    found = read_arguments(
        {"step_delimiters": "\\n", "scorer": "judge", "policy": "clip", "prm_separator": "\\n\\n"}
    )
    assert found.engine["step_delimiters"] == "\n"
    assert found.engine["prm_separator"] == "\n\n"
    assert type(found.engine["scorer"]).__name__ == "TargetJudge"
    assert type(found.engine["policy"]).__name__ == "Clip"
    sampling = read_arguments({"step_candidates": 4, "select": "softmax:20"}).sampling
    assert (sampling.step_candidates, sampling.select) == (4, Softmax(20.0))


def test_the_model_is_registered_and_announced() -> None:
    assert get_model("rsd") is RsdLM
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["entry-points"]["lm_eval.models"].items()
    assert name == "rsd"
    assert EntryPoint(name, value, "lm_eval.models").load() is RsdLM


def test_the_engine_alone_imports_no_harness() -> None:
    code = (
        "import sys, rsd_engine.cli.app, rsd_engine.integrations; print('lm_eval' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_harness_names_a_device_where_the_arguments_do_not() -> None:
    """Its command line says cuda:0 to everybody, with a GPU or without."""
    target = {"target": str(checkpoint_dir("target"))}
    for arguments, device in (({"device": "cpu"}, "cuda:1"), ({}, "cpu"), ({}, "cuda:0")):
        model = RsdLM.create_from_arg_obj({**target, **arguments}, {"device": device})
        found = str(model.engine.parts.pool.buffer.device)
        assert found == ("cuda:0" if device == "cuda:0" and torch.cuda.is_available() else "cpu")
        model.close()
    with pytest.raises(ModelArgumentError, match="nonsense"):
        RsdLM.create_from_arg_obj(target, {"device": "nonsense"})


def test_engines_are_freed() -> None:
    model = RsdLM.create_from_arg_string(f"target={checkpoint_dir('target')},device=cpu")
    assert isinstance(model.engine, Engine)
    model.close()
    with pytest.raises(ValueError, match="the engine is closed"):
        _ = model.max_length


def test_the_launcher_says_wrong_arguments_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: RsdLM(pretrained="gpt2"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("rsd_engine.integrations.lm_eval", run_name="__main__")
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("--model_args: unknown arguments ['pretrained']; allowed: ")


@pytest.mark.slow
def test_the_launcher_runs_a_task(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "rsd_engine.integrations.lm_eval", "--model", "rsd",
        "--model_args", ARGUMENTS, "--tasks", "demo_problems", "--include_path", str(TASKS),
        "--metadata", '{"problems": 4}', "--apply_chat_template", "--output_path", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "|demo_problems|" in done.stdout
    [written] = tmp_path.rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["rsd"]["steps_accepted"] > 0
