"""`rsd inspect`: what it says of checkpoints is so, and its verdict is the engine's."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rsd_engine import Engine
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.weights import DecoderWeights
from tests.cli.conftest import Rsd
from tests.tiny_models import TinyModels, make_tiny_models, tiny_tokenizer

ROOM = ("--device=cpu", "--memory=4GiB")


def as_json(rsd: Rsd, *args: str | Path, fits: bool = True) -> dict[str, Any]:
    result = rsd("inspect", *args, *ROOM, "--json")
    assert result.exit_code == (0 if fits else 1), result.output
    [line] = result.stdout.splitlines()
    found = dict(json.loads(line))
    assert found["fits"] == fits == (not problems(found))
    return found


def problems(found: dict[str, Any]) -> list[str]:
    return [f["text"] for f in found["findings"] if f["verdict"] == "problem"]


def said(found: dict[str, Any], subject: str) -> str:
    [text] = [f["text"] for f in found["findings"] if f["subject"] == subject]
    return str(text)


def roles(found: dict[str, Any]) -> dict[str, str]:
    return {model["role"]: model["source"] for model in found["models"]}


@pytest.fixture(scope="module")
def other_prm(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """A PRM with a tokenizer of its own, and a two-class head elsewhere."""
    return make_tiny_models(tmp_path_factory.mktemp("other"), own_prm_tokenizer=True)


def folders(made: TinyModels) -> list[Path]:
    return [made.draft, made.target, made.prm]


def edited(folder: Path, to: Path, name: str, **changes: Any) -> Path:
    """A copy of a checkpoint with other values in one of its JSON files."""
    shutil.copytree(folder, to)
    values = json.loads((to / name).read_text())
    (to / name).write_text(json.dumps({**values, **changes}))
    return to


def test_the_demo_family_by_its_files(rsd: Rsd) -> None:
    where = {role: checkpoint_dir(role) for role in ROLES}
    found = as_json(rsd, *where.values())
    assert roles(found) == {role: str(folder) for role, folder in where.items()}
    for model in found["models"]:
        folder = where[model["role"]]
        config = json.loads((folder / "config.json").read_text())
        stored = json.loads((folder / "generation_config.json").read_text())
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names = [n for n in file.keys() if not n.startswith("v_head")]  # noqa: SIM118
            numel = sum(file.get_tensor(name).numel() for name in names)
        assert model["parameters"] == numel
        assert model["weight_bytes"] in (2 * numel, 4 * numel)  # bf16 kept by the CPU library
        assert model["file_bytes"] == (folder / "model.safetensors").stat().st_size
        assert (model["format"], model["num_files"]) == ("safetensors", 1)
        assert model["architecture"] == config["architectures"][0]
        family = "Qwen2" if model["role"] == "prm" else "Llama"
        assert (model["family"], model["dtype"]) == (family, "bfloat16")
        assert model["layers"] == config["num_hidden_layers"]
        assert model["context"] == config["max_position_embeddings"]
        assert model["vocab_size"] == model["num_tokens"] == config["vocab_size"]
        assert [t["id"] for t in model["stop_tokens"]] == [stored["eos_token_id"]]
        assert model["special_tokens"]["bos"] == {"id": 1, "text": "<|bos|>"}
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        kv = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * 4
        assert model["kv_bytes_per_token"] == kv
        assert model["chat_template"]
    prm = found["models"][2]["prm"]
    assert (prm["family"], prm["threshold"]) == ("Skywork-o1-Open-PRM", 0.7)
    assert prm["prompt"] == "<|bos|>{question}\n"
    assert [t["text"] for t in prm["separator"]] == ["\n\n"]
    assert all(link["shares_vocabulary"] for link in found["links"].values())
    assert found["max_model_len"] == found["prm_max_len"] == 1024


def test_roles_are_found_in_any_order(rsd: Rsd, tiny: TinyModels) -> None:
    wanted = dict(zip(ROLES, map(str, folders(tiny)), strict=True))
    for order in itertools.permutations(wanted.values()):
        assert roles(as_json(rsd, *order)) == wanted
    assert roles(as_json(rsd, tiny.draft)) == {"target": str(tiny.draft)}
    assert roles(as_json(rsd, tiny.prm)) == {"prm": str(tiny.prm)}
    named = as_json(rsd, f"--target={tiny.draft}", tiny.prm, tiny.target)
    assert roles(named) == {**wanted, "draft": wanted["target"], "target": wanted["draft"]}
    same = as_json(rsd, tiny.draft, tiny.draft)
    assert [model["role"] for model in same["models"]] == ["draft", "target"]


def test_no_weights_are_loaded(rsd: Rsd, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("memory for weights was taken")

    monkeypatch.setattr(DecoderWeights, "allocate", refuse)
    as_json(rsd, *folders(tiny))


def test_every_broken_checkpoint_is_reported(rsd: Rsd, tiny: TinyModels, tmp_path: Path) -> None:
    broken = edited(tiny.draft, tmp_path / "broken", "config.json", hidden_act="gelu")
    found = as_json(rsd, tmp_path / "absent", tiny.target, broken, fits=False)
    first, second = problems(found)
    assert str(tmp_path / "absent") in first
    assert str(broken) in second and "hidden_act" in second and "\n" not in second
    assert [(m["role"], bool(m["error"])) for m in found["models"]] == [
        ("target", False), (None, True), (None, True),
    ]  # fmt: skip


def test_a_prm_whose_tokenizer_lacks_a_token(rsd: Rsd, tiny: TinyModels, tmp_path: Path) -> None:
    other = {"architectures": ["Qwen2ForProcessRewardModel"]}
    prm = edited(tiny.prm, tmp_path / "prm", "config.json", **other)
    found = as_json(rsd, tiny.draft, tiny.target, prm, fits=False)
    [text] = problems(found)
    assert text.startswith(f"model {str(prm)!r}: ") and "has no token '<|im_start|>'" in text
    assert [model["role"] for model in found["models"]] == ["draft", "target", None]


def test_a_prm_with_another_vocabulary_reads_text(rsd: Rsd, other_prm: TinyModels) -> None:
    found = as_json(rsd, *folders(other_prm))
    link = found["links"]["target-prm"]
    ids = tiny_tokenizer().get_vocab()
    first = min(i for token, i in ids.items() if i > 3)  # behind the special tokens
    assert not link["shares_vocabulary"]
    assert link["difference"].startswith(f"id {first} is '!' in the target and ")
    assert said(found, "steps to PRM").startswith("as text")


def test_writers_with_different_tokens(
    rsd: Rsd, tiny: TinyModels, other_prm: TinyModels, tmp_path: Path
) -> None:
    """And an engine takes them."""
    draft = tmp_path / "draft"
    shutil.copytree(tiny.draft, draft)
    shutil.copy(other_prm.prm / "tokenizer.json", draft)
    found = as_json(rsd, draft, tiny.target, tiny.prm)
    text = said(found, "vocabulary")
    wanted = "draft and target have different tokenizers: steps go from one to the other through"
    assert text.startswith(wanted) and "id 4 is" in text
    assert said(found, "steps to PRM").startswith("as text")
    with Engine(draft=draft, target=tiny.target, prm=tiny.prm, device="cpu") as engine:
        assert engine.parts.models.separate


def test_special_tokens_that_differ(rsd: Rsd, tiny: TinyModels, tmp_path: Path) -> None:
    """The PRM may have its own; writers are then as if all their tokens differed."""
    made = TinyModels(*(tmp_path / name for name in ("draft", "target", "prm")))
    for old, new in zip(folders(tiny), folders(made), strict=True):
        shutil.copytree(old, new)
    text = (made.prm / "tokenizer.json").read_text()
    renamed = text.replace("<|user|>", "<|human|>")
    (made.prm / "tokenizer.json").write_text(renamed)
    found = as_json(rsd, *folders(made))
    assert said(found, "steps to PRM").startswith("as ids")
    wanted = "id 2 is '<|user|>' in the target and '<|human|>' in the PRM"
    assert found["links"]["target-prm"]["special_difference"] == wanted
    (made.draft / "tokenizer.json").write_text(renamed)
    told = said(as_json(rsd, *folders(made)), "vocabulary")
    assert "id 2 is '<|human|>' in the draft and '<|user|>' in the target" in told
    with Engine(**made.sources(), device="cpu") as engine:
        assert engine.parts.models.separate


@pytest.mark.parametrize("own_prm_tokenizer", [False, True])
def test_the_engine_agrees(
    rsd: Rsd, tiny: TinyModels, other_prm: TinyModels, own_prm_tokenizer: bool
) -> None:
    made = other_prm if own_prm_tokenizer else tiny
    found = as_json(rsd, *folders(made))
    with Engine(**made.sources(), device="cpu", max_num_seqs=1) as engine:
        parts, memory = engine.parts, engine.parts.memory()
        assert parts.models.prm is not None
        shared = found["links"]["target-prm"]["shares_vocabulary"]
        assert (parts.models.prm.shared_vocabulary is not None) == shared != own_prm_tokenizer
        assert {t["id"] for t in found["models"][0]["stop_tokens"]} == parts.models.eos_ids
        assert parts.rules.max_model_len == found["max_model_len"]
        assert parts.rules.prm_max_len == found["prm_max_len"]
        for model, role in zip(found["models"], memory.weights, strict=True):
            assert model["weight_bytes"] == pytest.approx(memory.weights[role], rel=0.01)
            assert model["kv_bytes_per_token"] == memory.pages[role].bytes_per_token


def test_the_format_of_a_two_class_prm(rsd: Rsd, tmp_path: Path) -> None:
    made = make_tiny_models(tmp_path, two_class=True)
    found = as_json(rsd, *folders(made))
    prm = found["models"][2]["prm"]
    assert prm["prompt"].startswith("<|im_start|>system\nPlease reason step by step")
    assert prm["prompt"].endswith("user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    assert [token["text"] for token in prm["separator"]] == ["<extra_0>"]
    shown = rsd("inspect", *folders(made), *ROOM).stdout
    assert "two classes, good and bad. Rewards go from 0 to 1; a step is kept from 0.7 on." in shown


def test_stop_tokens(rsd: Rsd, tiny: TinyModels, tmp_path: Path) -> None:
    generation = "generation_config.json"
    two = edited(tiny.target, tmp_path / "two", generation, eos_token_id=[1, 3])
    found = as_json(rsd, tiny.draft, two, tiny.prm)
    assert said(found, "stop tokens").startswith("1 '</s>', 3 '<|assistant|>'")
    union = edited(tiny.target, tmp_path / "union", "config.json", eos_token_id=[2])
    assert said(as_json(rsd, union), "stop tokens") == "1 '</s>', 2 '<|user|>'"
    far = edited(tiny.target, tmp_path / "far", generation, eos_token_id=[1, 9999])
    [text] = problems(as_json(rsd, far, fits=False))
    assert "id 9999 (no such token) is beyond the model's" in text


def test_a_folder_without_weights(rsd: Rsd, tiny: TinyModels, tmp_path: Path) -> None:
    empty = edited(tiny.target, tmp_path / "empty", "config.json")
    (empty / "model.safetensors").unlink()
    found = as_json(rsd, empty, fits=False)
    assert "no weights in" in problems(found)[0]
    assert found["models"][0]["layers"] == 2


def test_kinds_and_counts(rsd: Rsd, tiny: TinyModels) -> None:
    found = as_json(rsd, f"--draft={tiny.prm}", tiny.target, fits=False)
    assert "give it as --prm" in problems(found)[0]
    assert [model["role"] for model in found["models"]] == ["target", None]
    found = as_json(rsd, tiny.draft, tiny.target, tiny.draft, fits=False)
    assert "is one language model too many" in problems(found)[0]
    for args in ((), (tiny.draft,) * 4):
        result = rsd("inspect", *args)
        assert result.exit_code == 2 and "give one to three models" in result.stderr


def test_what_fits_the_memory(rsd: Rsd, tiny: TinyModels) -> None:
    """Contexts as long as fit; a length that was asked for is a problem beyond that."""
    models = (*folders(tiny), "--device=cpu", "--json")
    found = json.loads(rsd("inspect", *models, "--memory=24MB").stdout)
    longest = found["max_model_len"]
    assert found["fits"] and 256 <= longest < 512
    assert said(found, "memory").endswith(f"one request of {longest} tokens fits at once")
    for length, code in ((longest, 0), (longest + 1, 1)):
        asked = (f"--max-model-len={length}", "--memory=24MB")
        assert rsd("inspect", *models, *asked).exit_code == code
    fewer = json.loads(rsd("inspect", *models, "--memory=24MB", "--max-num-seqs=1").stdout)
    assert fewer["max_model_len"] == 512
    result = rsd("inspect", *models, "--memory=100kB")
    assert result.exit_code == 1
    assert "0.1 MB of memory are available" in problems(json.loads(result.stdout))[0]
    too_long = json.loads(rsd("inspect", *models, *ROOM, "--max-model-len=999").stdout)
    assert said(too_long, "context").startswith("max_model_len must be in [2, 512]")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--memory=lots", "--memory must be a size such as 2GiB"),
        ("--max-model-len=1", "max_model_len must be >= 2, got 1"),
        ("--max-num-seqs=0", "max_num_seqs must be in [1, 256], got 0"),
        ("--dtype=int4", "dtype='int4' is not supported"),
        ("--device=tpu", "device must be"),
        ("--gpu-memory-utilization=2", "gpu_memory_utilization must be in (0, 1]"),
    ],
)
def test_wrong_options(rsd: Rsd, tiny: TinyModels, option: str, message: str) -> None:
    result = rsd("inspect", tiny.target, option)
    assert result.exit_code == 2
    assert not result.stdout
    assert message in " ".join(result.stderr.split())


def test_what_it_prints(rsd: Rsd, tiny: TinyModels) -> None:
    result = rsd("inspect", *folders(tiny), *ROOM)
    lines = result.stdout.splitlines()
    assert lines[0] == f"draft   {tiny.draft}"
    assert lines[-1] == "They fit together."
    assert any(line.startswith("ok: vocabulary: draft and target share") for line in lines)
    assert not [line for line in lines if line != line.rstrip()]


def test_scaled_positions(rsd: Rsd, tiny: TinyModels, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    }  # fmt: skip
    longer = edited(tiny.target, tmp_path / "longer", "config.json", rope_scaling=scaling)
    assert "theta 500, llama3 x 8 of 64" in rsd("inspect", longer, *ROOM).stdout
    [model] = as_json(rsd, longer)["models"]
    wanted = {"type": "llama3", "theta": 500.0, "factor": 8.0, "original_context": 64}
    assert model["ropes"] == [wanted]


def test_a_gguf_file(rsd: Rsd, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models.gguf_files import write_gguf
    from tests.steps.toy_tokenizers import smollm_like

    tokenizer = smollm_like()
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    path = write_gguf(tmp_path / "toy.gguf", model, tokenizer=tokenizer)
    [found] = as_json(rsd, path)["models"]
    assert found["format"].startswith("GGUF")
    assert found["family"] == "Llama" and found["chat_template"]
    assert found["parameters"] == model.num_parameters()
    assert found["num_tokens"] == tokenizer.get_vocab_size()
    assert found["stop_tokens"] == [{"id": 0, "text": tokenizer.id_to_token(0)}]


def test_of_a_hub_id_only_small_files_are_asked_for(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tiny.draft)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert open_checkpoint("owner/name", weights=False).config()["vocab_size"]
    assert asked and not [name for name in asked if "safetensors" in name or ".bin" in name]


def shares(found: dict[str, Any], key: str = "formats") -> dict[str, dict[str, Any]]:
    """Of every model, by role: format -> its bytes in memory, and what a pass reads."""
    return {
        model["role"]: {s["format"]: (s["num_bytes"], s["read_bytes"]) for s in model[key]}
        for model in found["models"]
    }


def test_weights_by_format(rsd: Rsd) -> None:
    """Bytes by hand; the PRM reads no embedding, of which its rows are looked up."""
    where = [checkpoint_dir(role) for role in ROLES]
    found = as_json(rsd, *where, "--quantization=target=int4")
    layers, embedding = 6 * 256 * (2 * 256 + 2 * 128 + 3 * 704), 960 * 256
    of_prm, of_its_embedding = 4 * 128 * (2 * 128 + 2 * 64 + 3 * 160), 960 * 128
    told = shares(found)
    assert told["target"] == {
        "Q4_1": (layers // 32 * 20, layers // 32 * 20),
        "Q8_0": (embedding // 32 * 34, embedding // 32 * 34),  # its LM head too
    }
    assert told["prm"] == {"bfloat16": (2 * (of_prm + of_its_embedding), 2 * of_prm)}
    on_a_gpu = 2 * (layers + embedding)
    assert shares(found, "formats_elsewhere")["target"] == {"bfloat16": (on_a_gpu, on_a_gpu)}
    with Engine(*where, device="cpu", quantization={"target": "int4"}) as engine:
        for role, formats in engine.memory.formats.items():
            matrices = {name: size for name, (size, _) in told[role.name.lower()].items()}
            assert matrices.items() <= formats.items()


def test_weights_that_are_expanded(rsd: Rsd, tiny: TinyModels, tmp_path: Path) -> None:
    """A GPTQ checkpoint: in memory on a CPU are fp32 matrices."""
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    folder = edited(tiny.draft, tmp_path / "gptq", "config.json", quantization_config=settings)
    stored, packed = load_file(folder / "model.safetensors"), {}
    for name, tensor in stored.items():
        if not name.endswith("proj.weight"):
            packed[name] = tensor
            continue
        outputs, inputs = tensor.shape
        shapes = {"qweight": (inputs // 8, outputs), "qzeros": (inputs // 32, outputs // 8)}
        stem = name.removesuffix(".weight")
        packed |= {
            f"{stem}.{part}": torch.zeros(shape, dtype=torch.int32)
            for part, shape in shapes.items()
        }
        packed[f"{stem}.scales"] = torch.zeros(inputs // 32, outputs, dtype=torch.float16)
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    [model] = as_json(rsd, folder)["models"]
    assert model["format"] == "safetensors (gptq)"
    linears = [t.numel() for name, t in stored.items() if name.endswith("proj.weight")]
    [expanded] = [s for s in model["formats"] if s["expanded_from"]]
    assert expanded["expanded_from"] == "GPTQ" and expanded["format"] == "float32"
    assert expanded["num_bytes"] == expanded["read_bytes"] == 4 * sum(linears)
    shown = rsd("inspect", folder, *ROOM).stdout
    assert "weights held in    float32 0.1 MB, expanded\n" in shown
    refused = as_json(rsd, folder, "--quantization=int8", fits=False)
    assert "needs plain weights" in said(refused, "quantization")
    assert "is stored as GPTQ; leave out quantization" in said(refused, "quantization")


def test_what_cannot_be_quantised(rsd: Rsd, tiny: TinyModels) -> None:
    found = as_json(rsd, tiny.target, "--quantization=draft=int8", fits=False)
    told = "quantization has 'draft'; the roles here are ['target']"
    assert said(found, "quantization") == told
    same = as_json(rsd, tiny.draft, tiny.draft, "--quantization=int8")
    weights = same["memory"]["weights"]
    assert weights["draft"] > 0 == weights["target"]  # one model in memory
    differently = as_json(rsd, tiny.draft, tiny.draft, "--quantization=draft=int4,target=int8")
    weights = differently["memory"]["weights"]
    assert 0 < weights["draft"] < weights["target"]
    for option, told in (
        ("--quantization=fp8", "quantization 'fp8' is for a GPU, and the device is cpu"),
        ("--dtype=bfloat16", "quantization='int8' on a CPU is for float32 and the CPU library"),
    ):
        given = ("--device=cpu", "--memory=1GB", "--quantization=int8", option)
        result = rsd("inspect", tiny.target, *given)
        assert result.exit_code == 2
        assert told in result.stderr


@pytest.mark.parametrize(("word", "held"), [("int4", "int4-g32"), ("fp8", "fp8")])
def test_rounded_for_a_gpu(rsd: Rsd, tiny: TinyModels, word: str, held: str) -> None:
    """No GPU has to be there."""
    given = ("--device=cuda", "--memory=80GB", f"--quantization={word}", "--json")
    result = rsd("inspect", tiny.draft, *given)
    assert result.exit_code == 0, result.output
    [model] = json.loads(result.stdout)["models"]
    assert held in str(model["formats"]) and held not in str(model["formats_elsewhere"])
