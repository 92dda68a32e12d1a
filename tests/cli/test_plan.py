"""`rsd plan`: sums, what it prints, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from rsd_engine.cli.plan import device
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_kernels.launch import available
from tests.cli.conftest import Rsd
from tests.models.checkpoints import make_model
from tests.models.gguf_files import write_gguf
from tests.tiny_models import TinyModels

MODELS = ("--draft=qwen2.5-1.5b", "--target=qwen2.5-7b", "--prm=skywork-prm-1.5b")
needs_triton = pytest.mark.skipif(not available(), reason="Triton is not installed")
# 1 TB/s, and so much arithmetic that only bytes count
PLAIN = ("--gpu=h100", "--bandwidth=1000", "--tflops=1000000")


def as_json(rsd: Rsd, *args: str) -> dict[str, Any]:
    result = rsd("plan", *args, "--json")
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    return dict(json.loads(line))


def test_by_hand(rsd: Rsd) -> None:
    """Bytes of one pass at 1,000 tokens: weights read, and 1,000 tokens of KV."""
    found = as_json(rsd, *MODELS, *PLAIN, "--context=1000", "--step-tokens=50", "--acceptance=0.8")
    draft = (2 * 1_543_714_304 + 1000 * 28672) / 1e12
    target = (2 * (7_615_616_512 - 152064 * 3584) + 1000 * 57344) / 1e12
    prm = (2 * (1_543_714_304 - 151936 * 1536) + 1000 * 28672) / 1e12
    for role, seconds in {"draft": draft, "target": target, "prm": prm}.items():
        assert found["pass_seconds"][role]["token"] == pytest.approx(seconds, rel=1e-5)
    rates = found["tokens_per_second"]
    assert rates["target"] == pytest.approx(1 / target, rel=1e-5)
    step = 50 * draft + prm + 0.2 * 50 * target
    assert found["step_seconds"]["total"] == pytest.approx(step, rel=1e-5)
    assert rates["rsd"]["0.8"] == pytest.approx(50 / step, rel=1e-5)
    even = (50 * draft + prm) / (50 * target)
    assert found["break_even"]["target alone"] == pytest.approx(even, rel=1e-5)
    speculation = rates["speculation"]["0.8"]
    k = speculation["draft_tokens"]
    tokens = (1 - 0.8 ** (k + 1)) / 0.2
    assert speculation["tokens_per_second"] == pytest.approx(
        tokens / (k * draft + target), rel=1e-5
    )
    rewrite = found["rewrite"]
    assert rewrite["tokens_a_pass"] == pytest.approx(50 / rewrite["target_passes"], rel=1e-5)
    later = (rewrite["target_passes"] - 1) * (rewrite["draft_tokens"] * draft + target)
    assert rewrite["seconds"] == pytest.approx(target + later, rel=1e-4)
    guessed = step - 0.2 * (50 * target - rewrite["seconds"])
    assert rates["rsd_guessed"] == pytest.approx(50 / guessed, rel=1e-4)
    assert found["gpu"]["bandwidth"] == 1e12
    assert found["models"]["target"]["source"] == "qwen2.5-7b"


def test_what_it_prints(rsd: Rsd) -> None:
    result = rsd("plan", *MODELS, "--gpu=H100", "--acceptance=0.85", "--guess-acceptance=0.75")
    assert result.exit_code == 0
    shown = result.stdout
    assert "H100 SXM: 3.35 TB/s, 990 TFLOP/s, 80 GB (published figures)" in shown
    assert "qwen2.5-7b: 7.62 B parameters (15.2 GB), 57344 bytes of KV a token" in shown
    for share in (50, 60, 70, 80, 85, 90):
        assert f"RSD, {share} % of steps kept" in shown
    assert "RSD, 85 % of steps kept, 75 % of guesses" in shown
    assert "A rewrite at 75 % of guesses right, in ms: " in shown
    assert re.search(r"^the target alone +23 %$", shown, re.MULTILINE)
    assert "917504 bytes a page, for 32 draft, 16 target, 32 prm tokens" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_all_guesses_right(rsd: Rsd) -> None:
    """A rewrite is one pass."""
    found = as_json(rsd, *MODELS, *PLAIN, "--guess-acceptance=1", "--acceptance=0.5")
    assert found["guess_acceptance"] == 1
    assert found["rewrite"]["target_passes"] == 1
    assert found["rewrite"]["seconds"] == pytest.approx(found["pass_seconds"]["target"]["token"])


def test_given_figures_are_said(rsd: Rsd) -> None:
    shown = rsd("plan", *MODELS, "--gpu=h100", "--bandwidth=3000", "--memory=79GiB").stdout
    assert "H100 SXM: 3.00 TB/s, 990 TFLOP/s, 85 GB (with your figures)" in shown


def test_where_rsd_never_pays(rsd: Rsd) -> None:
    """A draft as large as the target."""
    shown = rsd(
        "plan", "--draft=qwen2.5-7b", "--target=qwen2.5-7b", "--prm=skywork-prm-1.5b", "--gpu=h100"
    ).stdout
    assert any(line.split()[-1] == "never" for line in shown.splitlines() if "alone" in line)


def test_models_that_do_not_fit_are_said(rsd: Rsd) -> None:
    args = ("--draft=qwen2.5-7b", "--target=qwen2.5-72b", "--prm=qwen2.5-math-prm-7b", "--gpu=h100")
    shown = rsd("plan", *args).stdout
    assert "The models do not fit: no memory is left for keys and values." in shown
    found = as_json(rsd, *args)
    assert found["memory"]["pool"] < 0
    assert set(found["memory"]["sequences"].values()) == {0}


@pytest.mark.parametrize(
    ("gpu", "weights", "fits"),
    [("h100", "fp8", False), ("h200", "fp8", True), ("h100", "int4", True), ("h200", "int4", True)],
)
def test_the_large_triple_fits_if_it_is_quantised(
    rsd: Rsd, gpu: str, weights: str, fits: bool
) -> None:
    """7B, 72B and 7B; a pass then reads its weights as they are stored."""
    models = ("--draft=qwen2.5-7b", "--target=qwen2.5-72b", "--prm=qwen2.5-math-prm-7b")
    rates = ("--bandwidth=1000", "--tflops=1000000")
    found = as_json(rsd, *models, f"--quantization={weights}", f"--gpu={gpu}", *rates)
    assert (found["memory"]["sequences"]["1024"] >= 40) == fits
    embedding = 152064 * 8192
    bits = {"fp8": 8 + 1 / 512, "int4": 4.15625}[weights]
    read = (72_706_203_648 - 2 * embedding) * bits / 8 + 2 * embedding
    assert found["memory"]["weights"]["target"] == pytest.approx(read + 2 * embedding)
    token = (read + 1024 * 327680) / 1e12
    assert found["pass_seconds"]["target"]["token"] == pytest.approx(token, rel=1e-5)
    assert found["models"]["target"]["weights_in"] == weights


def test_one_role_quantised(rsd: Rsd) -> None:
    shown = rsd("plan", *MODELS, "--gpu=h100", "--quantization=target=INT4-g64").stdout
    assert "7.62 B parameters (5.70 GB), " in shown
    assert "\nweights target int4-g64\nwork " in shown
    assert "1.54 B parameters (3.09 GB), " in shown
    assert max(map(len, shown.splitlines())) <= 80


EMBEDDING = 152064 * 3584  # of Qwen2.5-7B, which has a head of its own
ON_CPU = ("--device=cpu", "--bandwidth=20", "--tflops=1000", "--memory=24GB", "--context=1000")


@pytest.mark.parametrize(
    ("words", "layers", "tables"),
    [(("--quantization=Q4_K",), 4.5, 4.5), (("--quantization=int4",), 5, 8.5), ((), 16, 16)],
)
def test_a_cpu(rsd: Rsd, words: tuple[str, ...], layers: float, tables: float) -> None:
    """Computes in float32, K and V too; at load 4 bits are those of Q4_1, beside Q8_0."""
    found = as_json(rsd, *MODELS, *ON_CPU, *words)
    body = 7_615_616_512 - 2 * EMBEDDING
    target = (body * layers + EMBEDDING * tables) / 8
    assert found["pass_seconds"]["target"]["token"] == pytest.approx(
        (target + 1000 * 2 * 57344) / 20e9, rel=1e-5
    )
    held = target + EMBEDDING * tables / 8
    assert found["memory"]["weights"]["target"] == pytest.approx(held, rel=1e-6)
    memory = found["memory"]
    left = 24e9 - sum(memory["weights"].values()) - memory["activations"]
    growing = memory["state"] + memory["tables"]
    assert memory["pool"] == pytest.approx(max(0, left) / 4 - growing + min(0, left), abs=1e5)


def test_of_a_folder_weights_are_counted_one_by_one(rsd: Rsd) -> None:
    """The target of the demo family in 4 bits: Q4_1 in its layers, Q8_0 in its embedding."""
    models = [f"--{role}={checkpoint_dir(role)}" for role in ROLES]
    work = (*ON_CPU[:-1], "--context=100", "--quantization=target=int4")
    found = as_json(rsd, *models, *work)
    layers, embedding = 6 * 256 * (2 * 256 + 2 * 128 + 3 * 704), 960 * 256
    # norms, 13 of 256 weights, count as the layers do
    held = (layers + 13 * 256) / 32 * 20 + embedding / 32 * 34
    assert found["memory"]["weights"]["target"] == pytest.approx(held, abs=1)
    assert found["models"]["target"]["weights_in"] == "Q4_1 and Q8_0"
    assert found["models"]["draft"]["weights_in"] is None
    assert found["models"]["draft"]["bytes_per_parameter"] == 2


def test_what_it_prints_of_a_cpu(rsd: Rsd) -> None:
    quantised = ("--quantization=target=q4_k,draft=int8", "--tflops=0.1")
    shown = rsd("plan", *MODELS, *ON_CPU, *quantised).stdout
    assert "CPU     this CPU: 20.0 GB/s, 100 GFLOP/s, 24.0 GB (with your figures)" in shown
    assert "7.62 B parameters (4.28 GB), 114688 bytes of KV a token" in shown
    assert "1.54 B parameters (1.64 GB), " in shown
    assert "\nweights draft int8, target q4_k\n" in shown
    assert "75% of what the models leave stays free" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_checkpoint_is_planned_as_its_files_are_used(rsd: Rsd, tmp_path: Path) -> None:
    model = make_model("llama3", hidden_size=64, intermediate_size=96)
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "model.gguf", model, quantise=kind)
    models = (f"--draft={path}", f"--target={path}", MODELS[2], "--step-tokens=8")
    work = (*ON_CPU[:-1], "--context=16")
    found = as_json(rsd, *models, *work)
    assert found["models"]["draft"]["weights_in"] == "Q8_0"
    numel = sum(p.numel() for name, p in model.named_parameters())
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    held = found["memory"]["weights"]["draft"]
    assert (numel - norms) * 34 / 32 <= held <= numel * 34 / 32
    told = "--quantization of target must be left out: .*model.gguf. is quantised already .Q8_0."
    refused = rsd("plan", *models, *work, "--quantization=target=int4")
    assert refused.exit_code == 2
    assert re.search(told, refused.stderr)
    shown = rsd("plan", *models, "--gpu=l4", "--context=16").stdout
    assert "\nweights draft expanded to bfloat16, target expanded to bfloat16\n" in shown


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "int4-g64"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "expanded to float32"),
    ],
)
def test_a_published_checkpoint_by_its_config(
    rsd: Rsd, tiny: TinyModels, tmp_path: Path, settings: dict[str, Any], name: str
) -> None:
    """As of a hub id, whose weights are not here."""
    config = json.loads((tiny.target / "config.json").read_text())
    config["quantization_config"] = settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    models = (f"--draft={tiny.draft}", f"--target={tmp_path}", f"--prm={tiny.prm}")
    work = ("--context=100", "--step-tokens=10")
    found = as_json(rsd, *models, *work, "--gpu=l4")["models"]
    assert found["target"]["weights_in"] == name
    assert (found["target"]["bytes_per_parameter"] < 1.1) == (name[:8] != "expanded")
    assert found["draft"]["weights_in"] is None
    on_cpu = as_json(rsd, *models, *ON_CPU[:-1], *work)["models"]["target"]
    assert on_cpu["bytes_per_parameter"] == 4


def test_rates_that_are_not_given_are_measured(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "read_bandwidth", lambda _: 3e10)
    monkeypatch.setattr(device, "product_rate", lambda _: 2e11)
    monkeypatch.setattr(device, "host_available_bytes", lambda: 16_000_000_000)
    shown = rsd("plan", *MODELS, "--device=cpu", "--quantization=int4").stdout
    threads = torch.get_num_threads()
    assert f"CPU     this CPU, {threads} thread" in shown
    assert "30.0 GB/s, 200 GFLOP/s, 16.0 GB (measured)" in shown


def test_a_prm_that_does_not_tell_that_it_is_one(rsd: Rsd) -> None:
    """Qwen2.5-7B as VersaPRM: its LM head is not read, but for two rows."""
    args = ("--draft=qwen2.5-1.5b", "--target=qwen2.5-7b", "--prm=qwen2.5-7b", *PLAIN)
    found = as_json(rsd, *args, "--prm-format=versaprm")["models"]["prm"]
    assert found["num_parameters"] == 7_615_616_512 - EMBEDDING
    assert found["head_parameters"] == 0


def test_folders_and_dtype(rsd: Rsd, tiny: TinyModels, model_args: list[str]) -> None:
    args = (*model_args, "--gpu=l4", "--context=100", "--step-tokens=10")
    found = as_json(rsd, *args)
    assert found["models"]["draft"]["source"] == str(tiny.draft)
    assert found["memory"]["kv_bytes_per_token"]["draft"] == 2 * 2 * 2 * 8 * 4
    assert list(found["memory"]["sequences"]) == ["512"]  # the models' context
    half = as_json(rsd, *args, "--dtype=bfloat16", "--max-model-len=256")
    assert half["memory"]["kv_bytes_per_token"]["draft"] == 2 * 2 * 2 * 8 * 2
    assert list(half["memory"]["sequences"]) == ["256"]


@needs_triton
def test_launches_by_kernel(rsd: Rsd) -> None:
    """The sum of the rows is the tick, at the slots asked for and at 1, 4 and 16."""
    args = ("--launches", "--draft=qwen2.5-0.5b", "--target=qwen2.5-1.5b", "--gpu=h200")
    found = as_json(rsd, *args, "--slots=2", "--context=500")
    assert found["gpu"]["bandwidth"] == pytest.approx(0.9 * 4.8e12)
    for role, source in (("draft", "qwen2.5-0.5b"), ("target", "qwen2.5-1.5b")):
        assert found[role]["source"] == source
        ticks = found[role]["ticks"]
        assert [(tick["sequences"], tick["early"]) for tick in ticks] == [
            (number, early) for number in (1, 2, 4, 16) for early in (False, True)
        ]
        for tick in ticks:
            parts = (tick["forward"], tick["control"])
            for part in parts:
                total = sum(k["launches"] * k["seconds"] for k in part["kernels"])
                assert part["seconds"] == pytest.approx(total, rel=1e-4)
            assert tick["seconds"] == pytest.approx(sum(p["seconds"] for p in parts), rel=1e-4)
            least = tick["forward"]["num_bytes"] / 4.32e12
            assert tick["forward"]["share"] == pytest.approx(least / parts[0]["seconds"], rel=1e-4)
    kv = 2 * 500 * 24 * 2 * 2 * 64 * 2
    [two, _] = [tick for tick in found["draft"]["ticks"] if tick["sequences"] == 2]
    assert two["forward"]["num_bytes"] == pytest.approx(2 * 494_032_768 + kv, rel=1e-3)


@needs_triton
def test_launches_as_a_table(rsd: Rsd) -> None:
    """No column for early starts on a device that has none. A measured bandwidth is said."""
    args = ("plan", "--launches", "--draft=qwen2.5-0.5b", "--bandwidth=1000")
    early, plain = (rsd(*args, f"--gpu={gpu}").stdout for gpu in ("h100", "a100-80gb"))
    for shown in (early, plain):
        assert "Expected, not measured" in shown and "reads 1.00 TB/s (your figure)" in shown
        assert "draft qwen2.5-0.5b, bfloat16: 1 sequence of 1024 tokens" in shown
        assert re.search(r"^projection 9728x896 +24 ", shown, re.MULTILINE)
        assert max(map(len, shown.splitlines())) <= 80
    assert re.search(r"us each +early$", early, re.MULTILINE)
    assert re.search(r"us each$", plain, re.MULTILINE)


@needs_triton
def test_launches_with_quantised_weights(rsd: Rsd) -> None:
    """The layers are read in their bits, the LM head and all else as before."""
    args = ("--launches", "--draft=qwen2.5-1.5b", "--gpu=h200")
    quantised = as_json(rsd, *args, "--quantization=int4-g64")["draft"]["ticks"][0]
    plain = as_json(rsd, *args)["draft"]["ticks"][0]
    assert quantised["control"] == plain["control"]
    assert 0.5 < quantised["seconds"] / plain["seconds"] < 0.9
    for few, many in zip(*(t["forward"]["kernels"] for t in (quantised, plain)), strict=True):
        assert (few["name"], few["grid"]) == (many["name"], many["grid"])
        of_layer = few["weight"] and few["weight"][0] != 151936
        saved = math.prod(few["weight"]) * (16 - (4 + 20 / 64)) / 8 if of_layer else 0
        assert few["num_bytes"] == pytest.approx(many["num_bytes"] - saved, rel=1e-5)
    shown = rsd("plan", *args, "--quantization=int4-g64").stdout
    assert "draft qwen2.5-1.5b, int4-g64 and bfloat16: 1 sequence of 1024 tokens" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*MODELS, "--gpu=gtx1080"), "gpu must be one of a10, a100-40gb"),
        (MODELS, "a plan needs --gpu"),
        (("--target=qwen2.5-7b", "--device=cpu"), "a plan needs --draft, --prm"),
        (("--target=qwen2.5-7b", "--gpu=h100"), "a plan needs --draft, --prm"),
        ((*MODELS, "--gpu=h100", "--bandwidth=1e-320"), "bandwidth must be in .0.001, 1e.09., got"),
        ((*MODELS, "--gpu=h100", "--tflops=1e308"), "tflops must be in .0.001, 1e.09., got"),
        ((*MODELS, "--gpu=h100", "--bandwidth=0"), "bandwidth must be a finite number above 0"),
        ((*MODELS, "--gpu=h100", "--memory=lots"), "--memory must be a size such as 2GiB"),
        ((*MODELS, "--gpu=h100", "--dtype=int4"), "dtype must be auto or one of .* got 'int4'"),
        ((*MODELS, "--gpu=h100", "--context=40000"), "are more than max_model_len=32768"),
        (
            (*MODELS, "--gpu=h100", "--max-model-len=99999"),
            r"max_model_len must be in \[2, 32768\]",
        ),
        ((*MODELS, "--gpu=h100", "--gpu-memory-utilization=2"), r"must be in \(0, 1\], got 2.0"),
        (
            ("--draft=skywork-prm-7b", "--target=qwen2.5-7b", "--prm=skywork-prm-7b", "--gpu=h100"),
            "--draft must be a language model; 'skywork-prm-7b' is a reward model",
        ),
        (
            ("--draft=qwen2.5-3b", "--target=qwen2.5-7b", "--prm=qwen2.5-3b", "--gpu=h100"),
            r"--prm must be a reward model; 'qwen2.5-3b' is a language model \(Qwen2ForCausalLM\)",
        ),
        ((*MODELS, "--gpu=h100", "--acceptance=1.5"), "--acceptance"),
        ((*MODELS, "--gpu=h100", "--guess-acceptance=-1"), "--guess-acceptance"),
        ((*MODELS, "--gpu=h100", "--slots=0"), "--slots"),
        (
            (*MODELS, "--gpu=h100", "--quantization=prm=q4_k"),
            "--quantization of prm must be one of fp8, int8, int4, .* got 'q4_k'",
        ),
        (
            (*MODELS, "--device=cpu", "--quantization=fp8"),
            "--quantization must be one of int8, int4, q4_0, .* got 'fp8'",
        ),
        (
            (*MODELS, "--device=cpu", "--quantization=int8", "--dtype=bfloat16"),
            "quantization='int8' on a CPU is for float32 and the CPU library, and dtype=",
        ),
        ((*MODELS, "--device=cpu", "--gpu=h100"), "--device may be cpu, without --gpu"),
        ((*MODELS, "--gpu=l4", "--prm-format=none"), "prm_format='none' is not known; one of"),
        ((*MODELS, "--device=cuda"), "--device may be cpu, .* got cuda"),
        (
            ("--launches", "--draft=qwen2.5-1.5b", "--gpu=h100", "--quantization=target=int4"),
            "--quantization names target, and --target is not given",
        ),
        (
            ("--launches", *MODELS, "--gpu=h100", "--quantization=q4_k"),
            "--quantization must be one of fp8, int8, int4, .* got 'q4_k'",
        ),
        (
            ("--launches", *MODELS, "--device=cpu"),
            "--launches is of a GPU: leave out --device, got cpu",
        ),
        (("--launches", *MODELS), "the launches of a plan need --gpu"),
        (("--launches", "--gpu=h100"), "the launches of a plan need --draft or --target"),
        (
            ("--launches", *MODELS, "--gpu=h100", "--slots=17"),
            r"slots must be in \[1, 16\] with --launches, got 17",
        ),
        (
            ("--launches", "--target=skywork-prm-7b", "--gpu=h100"),
            "--target must be a language model; 'skywork-prm-7b' is a reward model",
        ),
    ],
)
def test_wrong_use(rsd: Rsd, args: tuple[str, ...], message: str) -> None:
    result = rsd("plan", *args)
    assert result.exit_code == 2
    assert not result.stdout
    assert re.search(message, " ".join(result.stderr.split())), result.stderr


def test_an_unknown_model_lists_the_presets(rsd: Rsd) -> None:
    result = rsd("plan", "--draft=qwen9", *MODELS[1:], "--gpu=h100")
    assert result.exit_code == 1
    assert "got 'qwen9'" in result.stderr and "qwen2.5-0.5b" in result.stderr
