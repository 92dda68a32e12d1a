"""Bad input is refused with an error that names argument, value and what is allowed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.arguments import MAX_INT32
from tests.tiny_models import CONTEXT, TinyModels


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copies(tiny: TinyModels, tmp_path: Path) -> TinyModels:
    """Checkpoints that a test may break."""
    for source in (tiny.draft, tiny.target, tiny.prm):
        shutil.copytree(source, tmp_path / source.name)
    return TinyModels(tmp_path / "draft", tmp_path / "target", tmp_path / "prm")


def open_engine(models: TinyModels, **options: object) -> None:
    with Engine(**{**models.sources(), "device": "cpu", **options}):  # type: ignore[arg-type]
        pass


def unknown_architecture(models: TinyModels) -> None:
    edit_json(models.target / "config.json", architectures=["GPTNeoForCausalLM"])


def prm_without_head(models: TinyModels) -> None:
    shutil.rmtree(models.prm)
    shutil.copytree(models.draft, models.prm)


def prm_of_unknown_kind(models: TinyModels) -> None:
    edit_json(models.prm / "config.json", architectures=["Qwen2ForRewardModel"])


def truncated_weights(models: TinyModels) -> None:
    path = models.draft / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_config(models: TinyModels) -> None:
    (models.target / "config.json").unlink()


def no_tokenizer(models: TinyModels) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (models.target / name).unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (unknown_architecture, ["GPTNeoForCausalLM", "LlamaForCausalLM"]),
        (prm_without_head, ["LlamaForCausalLM", "prm_format", "Qwen2ForPrmModel"]),
        (prm_of_unknown_kind, ["Qwen2ForRewardModel", "prm_format", "Qwen2ForPrmModel"]),
        (truncated_weights, ["model.safetensors"]),
        (no_config, ["config.json"]),
        (no_tokenizer, ["tokenizer"]),
    ],
)
def test_bad_checkpoints(
    copies: TinyModels, damage: Callable[[TinyModels], None], words: list[str]
) -> None:
    damage(copies)
    with pytest.raises(ValueError) as error:
        open_engine(copies)
    for word in words:
        assert word in str(error.value)


def test_the_copies_are_good_before_they_are_broken(copies: TinyModels) -> None:
    open_engine(copies)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_num_seqs": 0}, ["max_num_seqs", "0"]),
        ({"enable_prefix_caching": "yes"}, ["enable_prefix_caching", "True or False", "'yes'"]),
        ({"max_model_len": 1}, ["max_model_len", "1", str(CONTEXT)]),
        ({"max_model_len": CONTEXT + 1}, ["max_model_len", str(CONTEXT + 1)]),
        ({"kv_cache_memory_bytes": 0}, ["kv_cache_memory_bytes", "0"]),
        ({"kv_cache_memory_bytes": 50_000}, ["kv_cache_memory_bytes", "50000", "max_model_len"]),
        ({"gpu_memory_utilization": 0.0}, ["gpu_memory_utilization"]),
        ({"step_delimiters": ("",)}, ["step_delimiters"]),
        ({"policy": 0.7}, ["policy", "0.7"]),
        ({"device": "toaster"}, ["device", "toaster"]),
        ({"device": None}, ["device", "None", "'cuda:N'"]),
        ({"device": "mps"}, ["device", "mps", "'cpu'"]),
        ({"dtype": "float12"}, ["dtype", "float12"]),
        ({"max_num_seqs": "4"}, ["max_num_seqs", "integer", "'4'"]),
        ({"max_num_seqs": 2.5}, ["max_num_seqs", "integer", "2.5"]),
        ({"max_model_len": 32.0}, ["max_model_len", "integer", "32.0"]),
        ({"kv_cache_memory_bytes": "2GiB"}, ["kv_cache_memory_bytes", "integer", "2GiB"]),
        ({"gpu_memory_utilization": "0.9"}, ["gpu_memory_utilization", "number", "0.9"]),
        ({"policy": Threshold}, ["policy", "Threshold(0.7)"]),
        ({"step_delimiters": 5}, ["step_delimiters", "5"]),
        ({"draft": 5}, ["draft", "folder", "5"]),
        ({"target": ""}, ["target", "folder", "''"]),
        ({"prm": "/no/such/folder"}, ["prm: ", "/no/such/folder", "not a folder"]),
        ({"draft": __file__}, ["draft: ", "is a file", "folder"]),
    ],
)
def test_bad_engine_arguments(
    tiny: TinyModels, options: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        open_engine(tiny, **options)
    for word in words:
        assert word in str(error.value)


def test_arguments_are_checked_before_a_model_is_looked_for() -> None:
    """A hub id would be downloaded first."""
    for options in ({"dtype": "fp16"}, {"max_num_seqs": 0}, {"policy": 1}, {"executor": "x"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Engine(target="no-such-owner/no-such-model", device="cpu", **options)


@pytest.mark.parametrize("roles", [(), ("prm",), ("draft", "target"), ("draft", "prm")])
def test_models_that_make_no_engine(tiny: TinyModels, roles: tuple[str, ...]) -> None:
    sources = {role: getattr(tiny, role) for role in roles}
    with pytest.raises(ValueError, match="give draft, target and prm"):
        Engine(**sources)


def test_a_threshold_that_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="threshold must be infinite or in .*, got nan"):
        Threshold(float("nan"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("max_tokens", 1.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("top_k", -2),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -2),
        ("seed", 2**63),
        ("n", 0),
        ("min_tokens", -1),
        ("min_tokens", 4096),
        ("max_steps", 0),
        ("max_step_tokens", 0),
        ("logprobs", -1),
        ("logprobs", 1000),
        ("stop", ""),
        ("stop", [""]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", list(range(100))),
        ("mode", "both"),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("stop", 5),
        ("stop", [5]),
        ("stop_token_ids", 5),
        ("ignore_eos", "no"),
        ("skip_special_tokens", None),
        ("policy", 0.7),
        ("policy", "threshold"),
    ],
)
def test_bad_sampling_parameters(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_unknown_sampling_parameters() -> None:
    with pytest.raises(ValueError, match="temprature"):
        SamplingParams.from_dict({"temprature": 0.5})


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([[]], ["prompt is empty"]),
        ([5] * CONTEXT, [f"prompt has {CONTEXT} tokens", str(CONTEXT - 1)]),
        ([0, 100_000], ["prompt_token_ids", "100000"]),
        ([0, -4], ["prompt_token_ids", "-4"]),
        ([0, 2**70], ["prompt_token_ids", str(2**70)]),
        ({"prompt": "a", "prompt_token_ids": [1]}, ["prompt"]),
        ({"question": "a"}, ["prompt"]),
        ({"prompt": "a", "answer": "b"}, ["answer"]),
        ({"prompt": "a", "question": 7}, ["question", "7"]),
        ({"prompt": "a", "question": "\udcff"}, ["question", "surrogate"]),
        ({"role": "user", "content": "a"}, ["chat()"]),
        ({"messages": [{"role": "user", "content": "a"}]}, ["chat()"]),
        ([3.5, 2.5], ["float"]),
        ([[3, 2.5]], ["token ids", "a list that holds float"]),
        ([True, False], ["bool"]),
        (None, ["prompts", "NoneType"]),
        (b"ab", ["prompts", "bytes"]),
        ({"a"}, ["prompts", "set"]),
        ((text for text in "ab"), ["prompts", "generator"]),
        (torch.tensor([1, 2]), ["prompts", "Tensor", ".tolist()"]),
        ([torch.tensor([1, 2])], ["Tensor", ".tolist()"]),
        ("half \ud83d", ["surrogate", "character 5"]),
    ],
)
def test_bad_prompts(engine: Engine, prompt: object, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        engine.generate(prompt, SamplingParams(max_tokens=4), use_tqdm=False)  # type: ignore[arg-type]
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        ([{"role": "user"}], "content"),
        (None, "messages must be a list"),
        ("Hi", "messages must be a list"),
        ({"role": "user", "content": "Hi"}, "messages must be a list"),
        (["Hi"], "a conversation must be a list"),
        ([{"role": "user", "content": None}], "role 'user' must be text .* got None"),
        ([{"role": "system", "content": None}], "role 'system' must be text .* got None"),
    ],
)
def test_bad_conversations(engine: Engine, messages: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine.chat(messages, SamplingParams(max_tokens=4), use_tqdm=False)  # type: ignore[arg-type]


def test_a_bad_prompt_among_good_ones_starts_nothing(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\]: prompt has"):
        engine.generate([[5, 6], [5] * CONTEXT], SamplingParams(max_tokens=4), use_tqdm=False)
    assert not engine.parts.core.has_work


def test_params_of_another_count(engine: Engine) -> None:
    with pytest.raises(ValueError, match="must have one entry per prompt .1., got 2"):
        engine.generate(["a"], [SamplingParams()] * 2, use_tqdm=False)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, [{"temperature": 0.0}], "hot"])
def test_params_of_another_type(engine: Engine, params: object) -> None:
    with pytest.raises(ValueError, match="sampling_params must .*SamplingParams"):
        engine.generate(["a"], params, use_tqdm=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        ("x" * 5000, "stop may hold strings of at most 255 bytes, got 'x+"),
        ([f"stop {i}" for i in range(2000)], "stop may hold at most 255 strings, got 2000"),
        ([f"{i:03} stop" for i in range(100)], "stop has 100 strings of 800 bytes"),
        ("\ud83d", "surrogate"),
    ],
)
def test_stop_strings_that_cannot_be_looked_for(
    engine: Engine, stop: str | list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        engine.generate("a", SamplingParams(stop=stop), use_tqdm=False)
    assert len(str(error.value)) < 300


def test_limits_out_of_reach(engine: Engine) -> None:
    wanted = SamplingParams(temperature=0.0, max_tokens=8, top_k=40, max_steps=40, ignore_eos=True)
    huge = replace(wanted, top_k=MAX_INT32, max_steps=MAX_INT32, max_step_tokens=MAX_INT32)
    [plain] = engine.generate("ab", wanted, use_tqdm=False)
    [same] = engine.generate("ab", huge, use_tqdm=False)
    assert same.outputs == plain.outputs


def test_an_engine_of_another_process(engine: Engine) -> None:
    """A forked child gets an error: the core's thread exists in the parent only."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            engine.generate("a", SamplingParams(max_tokens=1), use_tqdm=False)
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader, "rb") as said:
        assert f"belongs to process {os.getpid()}" in said.read().decode()


def test_modes_whose_models_are_absent(tiny: TinyModels) -> None:
    with (
        Engine(target=tiny.target, device="cpu") as engine,
        pytest.raises(ValueError, match="mode='rsd'"),
    ):
        engine.generate("a", SamplingParams(mode="rsd"), use_tqdm=False)


def test_the_longest_prompt_that_fits(engine: Engine) -> None:
    params = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, mode="target")
    [result] = engine.generate([5] * (CONTEXT - 1), params, use_tqdm=False)
    assert len(result.outputs[0].token_ids) == 1
    assert result.outputs[0].finish_reason == "length"


def test_a_question_the_prm_cannot_read(engine: Engine) -> None:
    prompt = {"prompt": "a", "question": "x" * 2000}
    with pytest.raises(ValueError, match="question takes 2002 tokens"):
        engine.generate(prompt, SamplingParams(max_tokens=4), use_tqdm=False)


def test_a_closed_engine(tiny: TinyModels) -> None:
    engine = Engine(**tiny.sources(), device="cpu")
    engine.close()
    engine.close()
    calls: list[Callable[[], object]] = [
        lambda: engine.generate("a", use_tqdm=False),
        lambda: engine.chat([{"role": "user", "content": "a"}], use_tqdm=False),
        lambda: engine.stream("a"),
        lambda: list(engine.as_completed(["a"])),
        lambda: engine.abort("0"),
        lambda: engine.metrics,
        lambda: engine.num_preemptions,
        lambda: engine.check_integrity(),
        lambda: engine.get_tokenizer(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:2", "has 2 CUDA devices, counted from 0"),
        ("cuda:1", r"current device, cuda:0; set CUDA_VISIBLE_DEVICES=1 .* use 'cuda'"),
    ],
)
def test_another_device_than_the_current_one(
    device: str, said: str, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ValueError, match=said):
        open_engine(tiny, device=device)
