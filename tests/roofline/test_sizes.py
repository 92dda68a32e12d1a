"""Presets against the published sizes; configs from folders; devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from rsd_engine.roofline.gpus import GPU_NAMES, Device, find_gpu
from rsd_engine.roofline.presets import PRESETS
from rsd_engine.roofline.shape import ModelShape
from rsd_engine.roofline.sources import find_config


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert ModelShape.of(find_config(name)).num_parameters == parameters


def test_every_preset_is_a_model_of_the_engine() -> None:
    for name in PRESETS:
        assert find_config(name).is_reward_model == ("prm" in name)


def test_what_a_pass_reads() -> None:
    """Tied: the embedding is the head. Untied: the input embedding is not read. PRM: no head."""
    embedding = 151936 * 1536
    tied = ModelShape.of(find_config("qwen2.5-1.5b"))
    assert tied.read_bytes == tied.weight_bytes == 2 * 1_543_714_304
    assert (tied.head_parameters, tied.body_parameters) == (embedding, 1_543_714_304 - embedding)
    untied = ModelShape.of(find_config("qwen2.5-7b"))
    assert untied.read_bytes == 2 * (7_615_616_512 - 152064 * 3584)
    prm = ModelShape.of(find_config("skywork-prm-1.5b"))
    assert prm.read_bytes == 2 * (1_543_714_304 - embedding)
    assert prm.head_parameters == 0


def test_kv_and_dtype() -> None:
    assert ModelShape.of(find_config("qwen2.5-7b")).kv_bytes_per_token == 28 * 4 * 128 * 2 * 2
    wide = ModelShape.of(find_config("qwen2.5-7b"), torch.float32)
    assert wide.kv_bytes_per_token == 28 * 4 * 128 * 2 * 4
    assert wide.weight_bytes == 4 * 7_615_616_512
    mixed = ModelShape.of(find_config("qwen2.5-7b"), torch.float32, 2.0)
    assert mixed.weight_bytes == 2 * 7_615_616_512
    assert mixed.kv_bytes_per_token == wide.kv_bytes_per_token


def test_a_folder_goes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "qwen2.5-7b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(PRESETS["qwen2.5-0.5b"])))
    monkeypatch.chdir(tmp_path)
    assert find_config("qwen2.5-7b").hidden_size == 896
    assert find_config("Qwen2.5-14B").hidden_size == 5120


def test_a_hub_id_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(PRESETS["qwen2.5-3b"])))
    asked: list[tuple[Any, ...]] = []

    def download(name: str, file: str, *, revision: str | None) -> str:
        asked.append((name, file, revision))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_config("someone/model", "v1").hidden_size == 2048
    assert asked == [("someone/model", "config.json", "v1")]
    path.write_text("[]")
    with pytest.raises(
        ValueError, match=r"model 'someone/model': .*config.json must hold a JSON object, got \[\]"
    ):
        find_config("someone/model")
    path.write_text("{")
    with pytest.raises(ValueError, match="model 'someone/model': "):
        find_config("someone/model")


def test_a_reward_model_with_the_architecture_of_a_language_model(tmp_path: Path) -> None:
    """Math-Shepherd's, which its name tells: as a PRM it is one, and counts no LM head."""
    folder = tmp_path / "math-shepherd-mistral-7b-prm"
    folder.mkdir()
    raw = dict(PRESETS["llama-3.1-8b"]) | {"architectures": ["MistralForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(raw))
    writer, prm = find_config(str(folder)), find_config(str(folder), is_prm=True)
    assert not writer.is_reward_model and prm.is_reward_model
    assert writer.num_parameters - prm.num_parameters == 128256 * 4096


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("qwen", "model must be a folder, a .gguf file, .* qwen2.5-0.5b, .* got 'qwen'"),
        ("/no/such/folder", "model must be a folder, .* got '/no/such/folder'"),
        ("no-such.gguf", "GGUF file 'no-such.gguf' does not exist"),
    ],
)
def test_what_is_no_model_is_said(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_config(source)


def test_a_model_of_another_kind_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(ValueError, match=r"model '.*': architectures=\['MambaForCausalLM'\]"):
        find_config(str(tmp_path))


def test_gpus() -> None:
    h100 = find_gpu(" H100 ")
    assert (h100.bandwidth, h100.flops, h100.memory_bytes) == (3.35e12, 989.5e12, 80e9)
    measured = h100.measured(bandwidth=3e12)
    assert (measured.bandwidth, measured.flops) == (3e12, 989.5e12)
    for name in GPU_NAMES:
        gpu = find_gpu(name)
        assert 50 < gpu.flops / gpu.bandwidth < 500  # operations a byte of dense bf16


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="gpu must be one of a10, .*h100, .*rtx4090.* got 'h1000'"):
        find_gpu("h1000")


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_device_without_a_rate_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="bandwidth must be a finite number above 0"):
        Device("x", bad, 1.0, 1.0)
