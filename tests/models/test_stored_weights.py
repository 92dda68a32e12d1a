"""Weights as people bring them: shards that disagree, ties that are none, odd names and dtypes."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.loader import load_language_model, load_reward_model
from rsd_engine.models.weight_form import WeightForm
from tests.models.checkpoints import PrmHeads, edit_config, file_behind, make_model, save
from tests.models.driver import Driver
from tests.plain_weights import matrix_of, plain

TOKENS = [1, 2, 3, 50, 60, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model("qwen2-untied"), tmp_path / "model")


def logits(source: Path) -> Tensor:
    return Driver(load_language_model(source, max_rows=8)).run((0, TOKENS))


def theirs(source: Path) -> Tensor:
    """What transformers makes of the same folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[:, -1]


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Takes the weights out of a folder."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return {name: tensor.clone() for name, tensor in weights.items()}


def write(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    content = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("stale_in", [0, 1])
def test_the_index_decides_which_copy_counts(folder: Path, name: str, stale_in: int) -> None:
    wanted = logits(folder)
    weights = weights_of(folder)
    shards = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    save_file(
        {name: torch.zeros_like(weights[name]), "unlisted": torch.ones(3)},
        folder / shards[stale_in],
    )
    save_file(weights, folder / shards[1 - stale_in])
    write_index(folder, dict.fromkeys(weights, shards[1 - stale_in]))
    assert torch.equal(logits(folder), wanted)

    others = {"lm_head.weight", "model.norm.weight"} - {name}
    write_index(
        folder,
        dict.fromkeys(weights, shards[1 - stale_in]) | dict.fromkeys(others, shards[stale_in]),
    )
    with pytest.raises(ValueError, match=r"index\.json says that \S+ is in .* does not hold it"):
        logits(folder)


def test_copies_that_the_index_does_not_name_are_logged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = logits(folder)
    weights = weights_of(folder)
    head = weights.pop("lm_head.weight")
    save_file(weights | {"lm_head.weight": torch.zeros_like(head)}, folder / "a.safetensors")
    save_file({"lm_head.weight": head}, folder / "b.safetensors")
    write_index(
        folder, dict.fromkeys(weights, "a.safetensors") | {"lm_head.weight": "b.safetensors"}
    )
    assert torch.equal(logits(folder), wanted)
    assert "does not name lm_head.weight in a.safetensors; left out" in caplog.text


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "C:\\b", "..\\b"]
)
def test_an_index_cannot_leave_its_folder(folder: Path, file: str) -> None:
    weights = weights_of(folder)
    write(folder.parent, weights)
    write_index(folder, dict.fromkeys(weights, file))
    with pytest.raises(ValueError, match="only files of its own folder are read"):
        logits(folder)


@pytest.mark.parametrize("file", [None, 3, ["a"], "", "a\n\x00b", "a" * 10_000])
def test_an_index_names_files(folder: Path, file: object) -> None:
    write_index(folder, dict.fromkeys(weights_of(folder), file))
    with pytest.raises(ValueError, match=r"index\.json (is not an index|names files)") as caught:
        logits(folder)
    assert "\n" not in str(caught.value)


def test_a_tied_model_with_another_lm_head_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(make_model("qwen2-tied"), tmp_path)
    weights = weights_of(folder)
    head = torch.randn(61, 32, generator=torch.Generator().manual_seed(1)) * 0.1
    write(folder, weights | {"lm_head.weight": head})
    torch.testing.assert_close(logits(folder), theirs(folder), atol=1e-4, rtol=1e-4)
    assert "ties lm_head to the embedding, but its files hold two that differ" in caplog.text
    model = load_language_model(folder, max_rows=1)
    assert model.num_parameters == sum(tensor.numel() for tensor in weights.values()) + 61 * 32
    assert model.weight_bytes == 4 * model.num_parameters


def test_a_tied_model_with_the_same_lm_head_holds_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(make_model("qwen2-tied"), tmp_path)
    wanted = logits(folder)
    weights = weights_of(folder)
    write(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    assert torch.equal(logits(folder), wanted)
    model = load_language_model(folder, max_rows=1)
    assert model.weight_bytes == 4 * sum(tensor.numel() for tensor in weights.values())
    assert "differ" not in caplog.text


def test_a_tied_model_may_store_only_its_lm_head(tmp_path: Path) -> None:
    folder = save(make_model("llama3"), tmp_path)
    wanted = logits(folder)
    weights = weights_of(folder)
    write(folder, weights | {"lm_head.weight": weights.pop("model.embed_tokens.weight")})
    assert torch.equal(logits(folder), wanted)
    torch.testing.assert_close(logits(folder), theirs(folder), atol=1e-4, rtol=1e-4)


def test_an_untied_model_needs_its_lm_head(folder: Path) -> None:
    weights = weights_of(folder)
    del weights["lm_head.weight"]
    write(folder, weights)
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight; .*tie_word_embeddings to true"):
        logits(folder)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("new_format", [False, True])
def test_bin_files_with_parameters(folder: Path, wrapped: bool, new_format: bool) -> None:
    wanted = logits(folder)
    state: dict[str, Any] = {name: nn.Parameter(t) for name, t in weights_of(folder).items()}
    if wrapped:
        state = {"state_dict": state, "epoch": 3}
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    found = logits(folder)
    assert torch.equal(found, wanted) and not found.requires_grad


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "holds a int under 'x'"),
        ([torch.zeros(2)], "holds a list under 'x'"),
        (torch.eye(3).to_sparse(), "tensor x is not a plain one"),
        (torch.zeros(2, device="meta"), "tensor x is not a plain one"),
    ],
)
def test_bin_files_hold_nothing_but_tensors(folder: Path, value: object, said: str) -> None:
    torch.save(weights_of(folder) | {"x": value}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=said):
        logits(folder)


def test_a_bin_file_must_hold_a_dict(folder: Path) -> None:
    torch.save(list(weights_of(folder).values()), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds a list; it must be a dict of tensors"):
        logits(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_only_floats_are_weights(folder: Path, dtype: torch.dtype, name: str) -> None:
    weights = weights_of(folder)
    write(folder, weights | {name: weights[name].to(dtype)})
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        ValueError, match=rf"{name} in model\.safetensors is of {kind}; weights must be float64"
    ):
        logits(folder)


def test_complex_weights_are_refused(folder: Path) -> None:
    weights = weights_of(folder)
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.complex64)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is of complex64"):
        logits(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_an_extra_prefix_is_read_over(
    folder: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rsd_engine")
    wanted = logits(folder)
    write(folder, {prefix + name: tensor for name, tensor in weights_of(folder).items()})
    assert torch.equal(logits(folder), wanted)
    assert f"names of layers begin with '{prefix}model.'; read as 'model.'" in caplog.text


def test_a_value_head_beside_a_wrapped_language_model(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rsd_engine")
    wanted = logits(folder)
    weights = {f"pretrained_model.{name}": t for name, t in weights_of(folder).items()}
    write(folder, weights | {"v_head.summary.weight": torch.zeros(1, 32)})
    assert torch.equal(logits(folder), wanted)
    assert "ignoring tensors that the model does not use: v_head.summary.weight" in caplog.text


@pytest.mark.parametrize("wrapper", ["module.", "pretrained_model."])
def test_a_wrapped_decoder_beside_its_head(folder: Path, wrapper: str) -> None:
    wanted = logits(folder)
    weights = weights_of(folder)
    write(folder, {wrapper + n.removeprefix("model."): tensor for n, tensor in weights.items()})
    assert torch.equal(logits(folder), wanted)


def test_a_missing_prefix_is_added(tmp_path: Path) -> None:
    folder = save(make_model("qwen2-tied"), tmp_path)
    wanted = logits(folder)
    write(folder, {n.removeprefix("model."): tensor for n, tensor in weights_of(folder).items()})
    assert torch.equal(logits(folder), wanted)
    torch.testing.assert_close(logits(folder), theirs(folder), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda n: "language_model." + n, r"begin with 'language_model\.model\.' where 'model\.'"),
        (lambda n: n.replace("layers.0.", "module.layers.0."), "all must begin with 'model.'"),
        (lambda n: n.replace(".layers.", ".h."), "not those of a supported decoder, such as lm_"),
        (lambda n: n.replace("o_proj.", "o_proj.base_layer."), "a LoRA adapter is not merged"),
    ],
)
def test_other_names_are_explained(folder: Path, rename: Callable[[str], str], said: str) -> None:
    write(folder, {rename(name): tensor for name, tensor in weights_of(folder).items()})
    with pytest.raises(ValueError, match=said) as caught:
        logits(folder)
    assert "\n" not in str(caught.value)


def test_left_overs_are_ignored_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rsd_engine")
    wanted = logits(folder)
    attention = "model.layers.0.self_attn"
    left = (f"{attention}.k_scale", f"{attention}.v_proj.v_scale", f"{attention}.attn.v_scale",
            f"{attention}.rotary_emb.inv_freq")  # fmt: skip
    write(folder, weights_of(folder) | {name: torch.ones(1) for name in left})
    assert torch.equal(logits(folder), wanted)
    lines = [record for record in caplog.records if "ignoring tensors" in record.message]
    assert len(lines) == 1 and all(name in lines[0].message for name in left)


@pytest.mark.parametrize("change", [1, -1])
def test_the_number_of_layers_must_agree(folder: Path, change: int) -> None:
    edit_config(folder, num_hidden_layers=3 + change, layer_types=None)
    with pytest.raises(
        ValueError, match=rf"num_hidden_layers={3 + change}, and the weights hold 3 layers"
    ):
        logits(folder)


@pytest.mark.parametrize(
    ("architecture", "head", "name"),
    [
        ("Qwen2ForProcessRewardModel", PrmHeads.two_class, "score.2.weight"),
        ("Qwen2ForPrmModel", PrmHeads.value, "v_head.summary.weight"),
    ],
)
def test_a_head_of_the_wrong_shape(
    folder: Path, architecture: str, head: Callable[[int], dict[str, Tensor]], name: str
) -> None:
    edit_config(folder, architectures=[architecture])
    weights = weights_of(folder) | head(32)
    rows = len(weights[name])
    write(folder, weights | {name: torch.zeros(rows + 1, 32)})
    with pytest.raises(ValueError) as caught:
        load_reward_model(folder, max_rows=1)
    said = str(caught.value)
    assert f"tensor {name} in model.safetensors has shape [{rows + 1}, 32]" in said
    assert f"must be [{rows}, 32]" in said and "give those that belong together" in said


def private_memory() -> int:
    """Bytes of memory of this process that no file stands behind."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_weights_used_as_stored_stay_in_the_file(tmp_path: Path) -> None:
    """Merged ones are copied; the others take no memory of the process's own."""
    folder = save(make_model("qwen2-untied", vocab_size=50_000), tmp_path)
    before = private_memory()
    model = load_language_model(folder, max_rows=1)
    weights, path = model.decoder.weights, str(folder / "model.safetensors")
    mapped = weights.embedding.nbytes + model.lm_head.nbytes
    assert mapped > 12e6 and private_memory() - before < 0.2 * mapped
    layer = weights.layers[1]
    assert file_behind(plain(weights.embedding)) == path
    for weight in (model.lm_head, layer.o, layer.down):
        assert file_behind(matrix_of(weight)) == path
    for weight in (layer.qkv, layer.gate_up):
        assert file_behind(matrix_of(weight)) is None


def test_weights_that_are_converted_are_copied(folder: Path) -> None:
    write(folder, {name: tensor.double() for name, tensor in weights_of(folder).items()})
    model = load_language_model(folder, max_rows=1)
    assert file_behind(matrix_of(model.lm_head)) is None


def test_nothing_writes_to_the_files(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = load_language_model(folder, max_rows=8)
    Driver(model).run((0, TOKENS))
    plain(model.decoder.weights.embedding).zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_blocks_of_which_no_products_are_made_are_counted_expanded() -> None:
    """Q3_K beside Q4_K, as in a file of type Q3_K_M: 110 and 144 bytes for 256 weights."""

    def unread() -> Any:
        raise AssertionError("a header is enough")

    def stored(packing: str, nbytes: int, blocks: bool) -> StoredTensor:
        return StoredTensor(
            (2, 256), torch.float32, "model.gguf", nbytes, unread, packing,
            stored=unread if blocks else None,
        )  # fmt: skip

    tensors = {"a": stored("Q3_K", 2 * 110, False), "b": stored("Q4_K", 2 * 144, True)}
    form = WeightForm.as_stored(torch.float32, tensors)
    assert form.name == "float32 and Q4_K"
    assert form.bytes_per_parameter == (4 * 256 + 144) / 512
