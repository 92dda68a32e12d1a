"""Every way weights come to disk gives the same model, and every fault is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_engine.models.checkpoints.open import (
    load_tokenizer,
    open_checkpoint,
)
from rsd_engine.models.loader import load_language_model, resolve_dtype
from rsd_kernels.cpu import ops as cpu_ops
from tests.models.checkpoints import edit_config, make_model, save
from tests.models.driver import Driver

TOKENS = [1, 2, 3, 50, 60, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model("qwen2-untied"), tmp_path / "model")


def logits(source: str | Path, **options: Any) -> Tensor:
    return Driver(load_language_model(source, max_rows=8, **options)).run((0, TOKENS))


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Takes the weights out of a folder."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return weights


def write_shards(
    folder: Path, weights: dict[str, Tensor], name: str, write: Callable[..., object]
) -> list[Path]:
    """Three shards and the index that names them."""
    stem, suffix = name.split(".", 1)
    names = sorted(weights)
    index: dict[str, str] = {}
    for i in range(3):
        file = f"{stem}-{i + 1:05}-of-00003.{suffix}"
        shard = {n: weights[n] for n in names[i::3]}
        write(shard, folder / file)
        index |= dict.fromkeys(shard, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": index}))
    return sorted({folder / file for file in index.values()})


@pytest.mark.parametrize("kind", ["sharded safetensors", "bin", "sharded bin", "old bin"])
def test_formats(folder: Path, kind: str) -> None:
    wanted = logits(folder)
    weights = weights_of(folder)
    if kind == "sharded safetensors":
        write_shards(folder, weights, "model.safetensors", save_file)
    elif kind == "sharded bin":
        write_shards(folder, weights, "pytorch_model.bin", torch.save)
    else:
        path = folder / "pytorch_model.bin"
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "bin")
    assert torch.equal(logits(folder), wanted)


def test_tied_model_needs_no_lm_head(tmp_path: Path) -> None:
    folder = save(make_model("qwen2-tied"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    model = load_language_model(folder, max_rows=1)
    assert model.weight_bytes == 4 * sum(tensor.numel() for tensor in weights.values())


def test_known_leftovers_are_ignored(folder: Path) -> None:
    wanted = logits(folder)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(weights_of(folder) | extra, folder / "model.safetensors")
    assert torch.equal(logits(folder), wanted)


def test_missing_tensor(folder: Path) -> None:
    weights = weights_of(folder)
    del weights["model.layers.1.self_attn.k_proj.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.self_attn\.k_proj\.bias"):
        logits(folder)


def test_left_over_tensor(folder: Path) -> None:
    extra = {"model.layers.0.self_attn.o_proj.bias": torch.zeros(32)}
    save_file(weights_of(folder) | extra, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"unexpected.*: model\.layers\.0\.self_attn\.o_proj\.bias"
    ):
        logits(folder)


def test_misshapen_tensor(folder: Path) -> None:
    weights = weights_of(folder)
    weights["model.norm.weight"] = torch.zeros(31)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight in .* has shape \[31\].* be \[32\]"):
        logits(folder)


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_truncated_safetensors(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        logits(folder)


def test_damaged_bin(folder: Path) -> None:
    torch.save(weights_of(folder), folder / "pytorch_model.bin")
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        logits(folder)


def test_bin_with_code_is_refused(folder: Path, tmp_path: Path) -> None:
    """A pickle that would run a command on load: it does not."""

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save(weights_of(folder) | {"attack": Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        logits(folder)
    assert not (tmp_path / "attacked").exists()


def test_missing_shard(folder: Path) -> None:
    shards = write_shards(folder, weights_of(folder), "model.safetensors", save_file)
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"names files that are not there: {shards[1].name}"):
        logits(folder)


def test_no_weights(folder: Path) -> None:
    weights_of(folder)
    with pytest.raises(ValueError, match="holds no weights"):
        logits(folder)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


def test_config_errors_name_the_model(folder: Path) -> None:
    edit_config(folder, hidden_act="gelu")
    with pytest.raises(ValueError, match=r"model '.*model': hidden_act='gelu'"):
        logits(folder)


def test_too_many_rows(folder: Path) -> None:
    driver = Driver(load_language_model(folder, max_rows=4))
    with pytest.raises(ValueError, match="pass has 5 rows; at most 4 fit"):
        driver.run((0, [1, 2, 3, 4, 5]))


def test_dtype(folder: Path) -> None:
    edit_config(folder, dtype="bfloat16")
    config = load_language_model(folder, max_rows=1).config
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", config, cpu) == torch.float32
    assert resolve_dtype("auto", config, gpu) == torch.bfloat16
    assert resolve_dtype("float16", config, gpu) == torch.float16
    assert resolve_dtype(torch.bfloat16, config, cpu) == torch.bfloat16
    for wrong in ("int8", torch.int8):
        with pytest.raises(ValueError, match=r"dtype=.*int8.* is not supported; auto or one of"):
            resolve_dtype(wrong, config, cpu)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_bfloat16_matrices_are_kept_only_where_nothing_is_lost(folder: Path, name: str) -> None:
    def held_in(weights: dict[str, Tensor], **options: Any) -> str:
        write = save_file if name.endswith("safetensors") else torch.save
        write(weights, folder / name)
        model = load_language_model(folder, max_rows=1, **options)
        assert model.decoder.weights.dtype == model.dtype
        return model.decoder.weights.held_in

    wide = weights_of(folder)
    narrow = {n: t.bfloat16() if t.dim() == 2 else t for n, t in wide.items()}
    kept = "bfloat16" if cpu_ops.available() else "float32"
    assert held_in(wide) == "float32"
    assert held_in(narrow) == kept
    assert held_in(narrow, dtype="float32") == kept
    assert (
        held_in(narrow | {"model.embed_tokens.weight": wide["model.embed_tokens.weight"]})
        == "float32"
    )


def test_bfloat16_matrices_are_widened_without_the_library(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(
        {n: t.bfloat16() for n, t in weights_of(folder).items()}, folder / "model.safetensors"
    )
    wanted = logits(folder)
    monkeypatch.setattr(cpu_ops, "available", lambda: False)
    model = load_language_model(folder, max_rows=8)
    assert model.decoder.weights.held_in == "float32"
    torch.testing.assert_close(Driver(model).run((0, TOKENS)), wanted)


def test_bf16_is_close_to_fp32(folder: Path) -> None:
    wanted, narrow = logits(folder), logits(folder, dtype="bfloat16")
    assert (wanted - narrow).abs().max() < 0.05 * wanted.abs().max()


def test_fewer_logits_than_vocabulary_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded rows at the end of the vocabulary are not computed."""
    model = load_language_model(folder, max_rows=8)
    wanted = Driver(model).run((0, TOKENS))
    driver, out = Driver(model), torch.empty(1, 55)
    whole = model.logits
    monkeypatch.setattr(model, "logits", lambda batch, kv, table, _: whole(batch, kv, table, out))
    driver.run((0, TOKENS))
    torch.testing.assert_close(out, wanted[:, :55])


def test_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert open_checkpoint(folder).generation_config() == {"eos_token_id": [5, 6]}
    (folder / "generation_config.json").unlink()
    assert open_checkpoint(folder).generation_config() is None


def test_no_tokenizer(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no readable tokenizer"):
        load_tokenizer(open_checkpoint(folder))


def hub_cache(cache: Path, folder: Path, name: str, revision: str) -> None:
    """Files `folder` in the layout of the hub's cache."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "snapshots").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text("0123abcd")
    folder.rename(root / "snapshots" / "0123abcd")


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_hub_id_from_the_local_cache(folder: Path, tmp_path: Path, revision: str) -> None:
    """Offline is settled when huggingface_hub is imported, hence the process of its own."""
    wanted = logits(folder)
    hub_cache(tmp_path / "cache", folder, "someone/tiny", revision)
    script = (
        "import sys, torch\n"
        "from tests.models.test_loading import logits\n"
        "revision = None if sys.argv[1] == 'main' else sys.argv[1]\n"
        "torch.save(logits('someone/tiny', revision=revision), sys.argv[2])\n"
        "try:\n"
        "    logits('someone/absent')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    result = tmp_path / "logits.pt"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, revision, str(result)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'someone/absent' is not a local path, and the hub did not give it" in done.stdout
    torch.testing.assert_close(torch.load(result), wanted, atol=1e-5, rtol=0.0)


def test_not_a_model_name() -> None:
    with pytest.raises(ValueError, match="not a hub id"):
        open_checkpoint("no/such/folder")


def test_revision_of_a_local_path(folder: Path) -> None:
    with pytest.raises(ValueError, match="revision='main' has no meaning"):
        open_checkpoint(folder, "main")
