"""`--quantization` is one option: every command that makes or estimates an engine has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.cli.app import app
from rsd_engine.cli.profile import run as run_profile
from rsd_engine.demo import ROLES, checkpoint_dir
from tests.cli.conftest import Rsd, write_jsonl
from tests.tiny_models import TinyModels

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
DEMO: dict[str, Any] = {role: checkpoint_dir(role) for role in ROLES}
MIXED = "--quantization=target=int4"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_command_with_models_has_it() -> None:
    """All those that take a draft, and no other."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {name: {o for p in c.params for o in p.opts} for name, c in commands.items()}
    with_models = {name for name, found in options.items() if "--draft" in found}
    assert {"generate", "serve", "chat", "eval", "tune", "score", "profile", "demo"} < with_models
    assert {"inspect", "plan"} < with_models
    assert with_models == {name for name, found in options.items() if "--quantization" in found}


def run(rsd: Rsd, *args: str) -> dict[str, Any]:
    models = [f"--{role}={folder}" for role, folder in DEMO.items()]
    result = rsd("generate", *models, "--device=cpu", "--temperature=0", "--json", *args, QUESTION)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_target_in_4_bits_beside_a_draft_in_16(rsd: Rsd) -> None:
    """The command line writes what an engine with these weights in memory does."""
    found = run(rsd, MIXED, "--policy=threshold:0.95")["outputs"][0]
    chat = [{"role": "user", "content": QUESTION}]
    params = SamplingParams(temperature=0.0, policy=Threshold(0.95))
    with Engine(**DEMO, device="cpu", quantization={"target": "int4"}) as engine:
        held = {r.name: m.decoder.weights.held_in for r, m in engine.parts.models.models.items()}
        assert held == {"DRAFT": "bfloat16", "TARGET": "Q4_1 and Q8_0", "PRM": "bfloat16"}
        [result] = engine.chat([chat], params, use_tqdm=False)
    wanted = result.outputs[0]
    assert found["token_ids"] == list(wanted.token_ids)
    rewards = [(step.reward and round(step.reward, 4)) for step in wanted.steps]
    assert [step["reward"] for step in found["steps"]] == rewards
    sources = {step["source"] for step in found["steps"]}
    assert "target" in sources, "no step is the quantised target's"


def test_a_profile_of_mixed_formats(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_profile, "read_bandwidth", lambda _: 1e10)
    result = rsd(
        "profile", "--problems=1", "--max-tokens=8", "--max-num-seqs=1", "--json",
        "--device=cpu", "--quantization=draft=int8,target=int4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    roles = json.loads(result.stdout.splitlines()[-1])["roles"]
    reads = {role: values["read_bytes"] for role, values in roles.items()}
    assert set(reads["DRAFT"]) == {"Q8_0", "float32"}
    # 6 layers: q, k, v, o of 256 and 128 outputs, gate, up and down of 704; blocks of 32 weights
    weights = 6 * 256 * (2 * 256 + 2 * 128 + 3 * 704)
    assert reads["TARGET"]["Q4_1"] == weights // 32 * 20
    assert reads["TARGET"]["Q8_0"] == 960 * 256 // 32 * 34  # embedding and LM head are one
    assert roles["TARGET"]["roofline_seconds"] == pytest.approx(
        roles["TARGET"]["passes"] * sum(reads["TARGET"].values()) / 1e10
    )
    # The PRM reads no embedding: its rows are looked up.
    layers = 4 * 128 * (2 * 128 + 2 * 64 + 3 * 160)
    assert reads["PRM"]["bfloat16"] == 2 * layers


BAD = [
    ("int3", "--quantization must be one of int8, int4{more}, got 'int3'"),
    ("target=int3", "--quantization of target must be one of int8, int4{more}, got 'int3'"),
    ("boss=int4", "--quantization names 'boss'; the roles are draft, target, prm"),
    ("int4,x", "--quantization must be a word or ROLE=WORD,ROLE=WORD, got 'int4,x'"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
@pytest.mark.parametrize("command", ["generate", "score", "profile", "demo", "inspect", "plan"])
def test_bad_input_is_one_line_before_anything_is_read(
    rsd: Rsd, tiny: TinyModels, tmp_path: Path, command: str, value: str, message: str
) -> None:
    models = [f"--{role}={tmp_path / 'absent'}" for role in ("draft", "target", "prm")]
    more = {
        "generate": ("hello",),
        "score": (write_jsonl(tmp_path / "solutions.jsonl", []),),
        "plan": ("--device=cpu",),
    }.get(command, ())
    result = rsd(command, *models, f"--quantization={value}", *more)
    assert result.exit_code == 2
    assert not result.stdout
    blocks = "q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k"
    wanted = message.format(more=f", {blocks}" if command == "plan" else ", fp8")
    assert result.stderr == f"error: {wanted}\n"


def test_in_a_config_file(rsd: Rsd, tiny: TinyModels, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[engine.quantization]\ntarget = "int3"\n')
    result = rsd("generate", f"--target={tiny.target}", f"--config={config}", "hello")
    assert result.exit_code == 2
    wanted = "engine.quantization of target must be one of int8, int4, fp8, got 'int3'"
    assert wanted in result.stderr
