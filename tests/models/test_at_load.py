"""Plain weights quantised as they are loaded, and the cache of what they become."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_engine.integrations.transformers.module_checkpoint import ModuleCheckpoint
from rsd_engine.models.checkpoints import block_cache
from rsd_engine.models.checkpoints.at_load import QUANTIZATIONS, QuantisedAtLoad
from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.loader import (
    load_language_model,
    load_reward_model,
    read_language_config,
    weight_form,
)
from rsd_kernels.cpu.quantise import quantise
from rsd_kernels.formats.formats import Q4_1, Q8_0
from tests.models.checkpoints import PrmHeads, edit_config, make_model, save
from tests.models.driver import Driver
from tests.models.gguf_files import write_gguf
from tests.models.test_lora import make_adapter

TOKENS = [1, 2, 3, 50, 60, 7]
INT4 = QUANTIZATIONS["int4"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rsd-engine" / "quantised"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model("qwen2-untied"), tmp_path / "model")


def opened(folder: Path, name: str = "int4") -> QuantisedAtLoad:
    return QuantisedAtLoad(open_checkpoint(folder), QUANTIZATIONS[name])


def logits(source: Path | QuantisedAtLoad) -> Tensor:
    return Driver(load_language_model(source, max_rows=8)).run((0, TOKENS))


def rounded_copy(folder: Path, to: Path, name: str) -> Path:
    """The same model with plain weights of the values that quantised ones stand for."""
    to.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (to / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    for tensor, value in weights.items():
        in_layer = ".layers." in tensor
        if value.dim() == 2 and value.shape[1] % 32 == 0 and (in_layer or "score" not in tensor):
            form = Q4_1 if in_layer and name == "int4" else Q8_0
            weights[tensor] = quantise(value, form).expand()
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("name", ["int4", "int8"])
@pytest.mark.parametrize("architecture", ["qwen2-untied", "llama3", "phi3"])
def test_a_model_computes_with_the_rounded_values(
    architecture: str, name: str, tmp_path: Path
) -> None:
    folder = save(make_model(architecture), tmp_path / "model")
    plain = rounded_copy(folder, tmp_path / "rounded", name)
    assert torch.equal(logits(opened(folder, name)), logits(plain))
    assert not torch.equal(logits(plain), logits(folder))
    assert torch.equal(logits(opened(folder, name)), logits(plain)), "from the cache"


def test_the_head_of_a_reward_model_stays(tmp_path: Path) -> None:
    folder = save(make_model("qwen2-untied"), tmp_path / "prm")
    edit_config(folder, architectures=["Qwen2ForProcessRewardModel"])
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    head = PrmHeads.two_class(32)
    save_file(weights | head, folder / "model.safetensors", metadata={"format": "pt"})
    plain = rounded_copy(folder, tmp_path / "rounded", "int4")
    found, wanted = (load_reward_model(s, max_rows=8) for s in (opened(folder), plain))
    assert torch.equal(Driver(found).run((0, TOKENS)), Driver(wanted).run((0, TOKENS)))


def test_headers_tell_what_is_held(folder: Path, cache: Path) -> None:
    checkpoint = opened(folder)
    stored = checkpoint.tensors()
    found = {name.removesuffix(".weight"): t.packing for name, t in stored.items() if t.packing}
    per_layer = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
    assert found.pop("model.embed_tokens") == found.pop("lm_head") == "Q8_0"
    assert len(found) == 3 * len(per_layer) and set(found.values()) == {"Q4_1"}
    assert stored["model.layers.0.mlp.down_proj.weight"].stored is None  # rows of 48
    assert stored["model.layers.0.self_attn.q_proj.weight"].nbytes == 32 * 20
    form = weight_form(checkpoint, read_language_config(checkpoint), "auto", torch.device("cpu"))
    assert form.name == "float32, Q4_1 and Q8_0"
    held = load_language_model(checkpoint, max_rows=8).decoder.weights.held_in
    assert cache.exists() and held == "float32, Q4_1 and Q8_0"  # the LM head apart


def test_the_cache_is_read_and_not_made_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = logits(opened(folder))
    [file] = cache.iterdir()
    before = file.stat()
    monkeypatch.setattr("rsd_engine.models.checkpoints.at_load.quantise", None)
    assert torch.equal(logits(opened(folder)), wanted)
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_another_quantization_or_file_is_another_entry(folder: Path, cache: Path) -> None:
    logits(opened(folder))
    logits(opened(folder, "int8"))
    assert len(list(cache.iterdir())) == 2
    os.utime(folder / "model.safetensors", ns=(1, 1))
    logits(opened(folder))
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "header", "other matrices"])
def test_a_damaged_file_is_made_again(
    folder: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = logits(opened(folder))
    [file] = cache.iterdir()
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-1])
    elif damage == "header":
        file.write_bytes(b"\xff" * 8 + whole[8:])
    else:
        save_file({"a": torch.zeros(1)}, file)
    assert torch.equal(logits(opened(folder)), wanted)
    assert f"{file} is damaged, and made again" in caplog.text
    assert file.read_bytes() == whole and [file] == list(cache.iterdir())


def test_without_a_place_to_write_it_stays_in_memory(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = logits(opened(folder))
    [file] = cache.iterdir()
    file.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert torch.equal(logits(opened(folder)), wanted)
    assert "not kept for the next start, and stay in memory" in caplog.text


def test_a_full_disk_leaves_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    wanted = logits(opened(folder))
    for file in cache.iterdir():
        file.unlink()
    monkeypatch.setattr(block_cache.os, "fsync", full)
    assert torch.equal(logits(opened(folder)), wanted)
    assert "No space left on device" in caplog.text and not list(cache.iterdir())


_KILLED = """
import os, signal, sys
from rsd_engine.integrations.transformers.module_checkpoint import ModuleCheckpoint
from rsd_engine.models.checkpoints import block_cache
from rsd_engine.models.checkpoints.at_load import QUANTIZATIONS, QuantisedAtLoad
from rsd_engine.models.checkpoints.open import open_checkpoint
block_cache.os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
checkpoint = QuantisedAtLoad(open_checkpoint(sys.argv[1]), QUANTIZATIONS["int4"])
checkpoint.tensors()["lm_head.weight"].stored()
"""


def test_after_a_killed_writer_the_next_one_begins_anew(folder: Path, cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(folder)])
    assert done.returncode == -9
    assert not list(cache.glob("*.safetensors"))
    wanted = logits(rounded_copy(folder, folder.parent / "rounded", "int4"))
    assert torch.equal(logits(opened(folder)), wanted)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]


def test_plain_gguf_files_too(tmp_path: Path) -> None:
    model = make_model("llama3")
    kind = gguf.GGMLQuantizationType.BF16
    path = write_gguf(tmp_path / "model.gguf", model, quantise=kind)
    stored = opened(path).tensors()
    assert stored["model.layers.0.self_attn.q_proj.weight"].packing == "Q4_1"
    found, wanted = logits(opened(path)), logits(path)
    assert not torch.equal(found, wanted)
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.9


def test_a_model_in_memory_has_no_cache(folder: Path, cache: Path) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    checkpoint = QuantisedAtLoad(ModuleCheckpoint(module), INT4)
    found = logits(checkpoint)
    assert not cache.exists()
    assert torch.equal(found, logits(opened(folder)))


def test_a_changed_adapter_is_another_entry(folder: Path, cache: Path, tmp_path: Path) -> None:
    adapter, found = tmp_path / "adapter", []
    for strength in (0.1, 0.2):
        shutil.rmtree(adapter, ignore_errors=True)
        make_adapter(adapter, folder, strength=strength)
        found.append(logits(opened(adapter)))
    assert len(list(cache.iterdir())) == 2
    assert not torch.equal(*found) and not torch.equal(found[0], logits(opened(folder)))


def test_a_model_of_narrow_rows(tmp_path: Path) -> None:
    folder = save(make_model("llama2", hidden_size=24, intermediate_size=40), tmp_path / "model")
    with pytest.raises(ValueError, match="blocks of 32, and no matrix has rows of whole blocks"):
        opened(folder)


def test_weights_that_are_quantised_already(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(
        tmp_path / "model.gguf", make_model("llama3", intermediate_size=64), quantise=kind
    )
    with pytest.raises(ValueError, match=r"needs plain weights, and .* is stored as Q8_0"):
        opened(path)


def test_a_value_that_is_not_finite_is_named(folder: Path, cache: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.o_proj\.weight in model\.saf.*Q4"):
        logits(opened(folder))
    assert not list(cache.iterdir())


def test_it_says_how_long_it_took(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rsd_engine"):
        logits(opened(folder))
    assert "20 of 23 matrices in int4, ready after" in caplog.text
