"""The plugin for vLLM: what it registers, when it registers nothing, and rewards in vLLM itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine
from tests.integrations.fake_vllm import write_fake_vllm
from tests.tiny_models import make_tiny_models

ROOT = Path(__file__).resolve().parents[2]
GROUP = "vllm.general_plugins"
REGISTER = "from rsd_engine.integrations.vllm_plugin.register import register\n"
OURS = {
    "Qwen2ForPrmModel": "rsd_engine.integrations.vllm_plugin.models:ValueHeadRewardModel",
    "RsdProcessRewardModel": "rsd_engine.integrations.vllm_plugin.models:TwoClassRewardModel",
}
SHOW = "import json, vllm; print(json.dumps(vllm.ModelRegistry.models))\n"


def entry_points() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, str] = project["entry-points"][GROUP]
    return found


def environment(*more: Path) -> dict[str, str]:
    """This checkout and `more` on the path of another process."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", *more)))
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"PYTHONPATH": path}


def run(code: str, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=site, env=environment(site), capture_output=True, text=True,
    )  # fmt: skip


def test_the_entry_point_is_the_function() -> None:
    assert entry_points() == {"rsd": "rsd_engine.integrations.vllm_plugin.register:register"}


def test_it_registers_by_name_once_and_keeps_what_vllm_has(tmp_path: Path) -> None:
    write_fake_vllm(tmp_path)
    done = run(f"{REGISTER}register(); register()\n{SHOW}", tmp_path)
    assert json.loads(done.stdout) == {"LlamaForCausalLM": "llama"} | OURS
    assert done.stderr == ""
    own = f"import vllm; vllm.ModelRegistry.models['Qwen2ForPrmModel'] = 'its own'\n{REGISTER}"
    done = run(f"{own}register()\n{SHOW}", tmp_path)
    assert json.loads(done.stdout)["Qwen2ForPrmModel"] == "its own"


def test_it_imports_neither_torch_nor_the_engine(tmp_path: Path) -> None:
    write_fake_vllm(tmp_path)
    code = f"{REGISTER}register()\nimport sys; print(*sys.modules)"
    loaded = run(code, tmp_path).stdout.split()
    assert "vllm" in loaded
    heavy = ("torch", "transformers", "rsd_engine.engine", "rsd_engine.models", "rsd_engine.server")
    assert not set(loaded) & {*heavy, "rsd_engine.integrations.vllm_plugin.models"}


@pytest.mark.parametrize(
    ("file", "lost", "found", "named"),
    [
        ("model_executor/models/registry.py", "ModelRegistry = ", "Other = ", "ModelRegistry"),
        ("model_executor/models/qwen2.py", "class Qwen2Model", "class Other", "Qwen2Model"),
        (
            "model_executor/layers/pooler/seqwise/poolers.py",
            "def pooler",
            "def other",
            "pooler_for",
        ),
        ("model_executor/models/utils.py", None, "", "AutoWeightsLoader"),
        ("model_executor/models/interfaces.py", "class SupportsPP", "class (", "SyntaxError"),
    ],
)
def test_a_vllm_without_what_it_needs_is_left_alone(
    tmp_path: Path, file: str, lost: str | None, found: str, named: str
) -> None:
    changed = write_fake_vllm(tmp_path) / file
    if lost is None:
        changed.unlink()
    else:
        changed.write_text(changed.read_text().replace(lost, found))
    done = run(f"{REGISTER}register()\nimport sys; print('vllm' in sys.modules)", tmp_path)
    assert done.stdout.strip() == "False"  # it was not even imported
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("rsd: no reward models are registered with vLLM") and (
        named in done.stderr
    )


@pytest.mark.parametrize("damage", ["register_model", "get_supported_archs"])
def test_an_error_of_the_hook_is_a_line_of_the_log(tmp_path: Path, damage: str) -> None:
    registry = write_fake_vllm(tmp_path) / "model_executor/models/registry.py"
    registry.write_text(registry.read_text().replace(damage, "something_else"))
    done = run(f"{REGISTER}register()\n{SHOW}", tmp_path)
    assert json.loads(done.stdout) == {"LlamaForCausalLM": "llama"}
    assert done.stderr.count("\n") == 1 and damage in done.stderr


def test_no_vllm_at_all_is_a_line_of_the_log(tmp_path: Path) -> None:
    done = run(f"import sys; sys.modules['vllm'] = None\n{REGISTER}register()", tmp_path)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "vllm" in done.stderr


def test_heads_are_loaded_and_read_at_the_last_token(tmp_path: Path) -> None:
    """Both models over the stand-in's decoder, against the formulas written out here."""
    write_fake_vllm(tmp_path)
    code = """
        import torch
        from types import SimpleNamespace
        from rsd_engine.integrations.vllm_plugin.models import (
            TwoClassRewardModel, ValueHeadRewardModel,
        )

        HIDDEN, VOCAB = 8, 11
        ids, positions = torch.tensor([1, 5, 7, 2, 9]), torch.tensor([0, 1, 2, 0, 1])
        last = torch.tensor([2, 4])  # of two sequences
        embedding = torch.randn(VOCAB, HIDDEN)
        rows = embedding[ids[last]] + positions[last, None]

        def make(model_class, dtype=torch.float32):
            hf = SimpleNamespace(hidden_size=HIDDEN, vocab_size=VOCAB, num_labels=None)
            model = SimpleNamespace(hf_config=hf, head_dtype=dtype, pooler_config=None)
            return model_class(vllm_config=SimpleNamespace(model_config=model))

        def rewards(model):
            return model.pooler(model(ids, positions), last)

        value = make(ValueHeadRewardModel)
        w, b = torch.randn(1, HIDDEN), torch.randn(1)
        loaded = value.load_weights([
            ("model.embed_tokens.weight", embedding), ("v_head.summary.weight", w),
            ("v_head.summary.bias", b), ("lm_head.weight", torch.zeros(VOCAB, HIDDEN)),
        ])
        assert loaded == {"model.embed_tokens.weight", "score.weight", "score.bias"}
        assert value.config.num_labels == 1 and value.default_seq_pooling_type == "LAST"
        torch.testing.assert_close(rewards(value), 1 / (1 + torch.exp(-(rows @ w.T + b))))

        two = make(TwoClassRewardModel)
        head = {
            "score.0.weight": torch.randn(HIDDEN, HIDDEN), "score.0.bias": torch.randn(HIDDEN),
            "score.2.weight": torch.randn(2, HIDDEN), "score.2.bias": torch.randn(2),
        }
        two.load_weights([("model.embed_tokens.weight", embedding), *head.items()])
        inner = (rows @ head["score.0.weight"].T + head["score.0.bias"]).clamp(min=0)
        exp = torch.exp(inner @ head["score.2.weight"].T + head["score.2.bias"])
        torch.testing.assert_close(rewards(two), exp / exp.sum(-1, keepdim=True))
        assert two.config.num_labels == 2
        assert make(TwoClassRewardModel, torch.bfloat16).score[0].weight.dtype == torch.bfloat16
    """
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif("RSD_VLLM_PYTHON" not in os.environ, reason="RSD_VLLM_PYTHON names no Python")
@pytest.mark.parametrize("two_class", [False, True], ids=["value head", "two classes"])
def test_rewards_in_vllm_are_the_engines_own(tmp_path: Path, two_class: bool) -> None:
    """A checkpoint in the authors' format, one prompt a step, in vLLM with its prefix cache."""
    # vLLM's attention on CPUs takes head sizes from 32 on.
    models = make_tiny_models(tmp_path, two_class=two_class, prm_hidden=128)
    prompts: list[list[int]] = []
    rewards: list[float] = []
    with Engine(**models.sources(), device="cpu") as engine:
        format = engine.parts.models.prm.format  # type: ignore[union-attr]
        for question in ("What is 12 + 30? " * 8, "How many pages has a book of 3 parts? " * 5):
            steps = [f"Step {i} says that {i} + {len(question)} is so." for i in range(3)]
            [solution] = engine.score(question, steps)
            rewards += solution.rewards
            ids = format.prompt_ids(question)
            for i, step in enumerate(steps):
                ids = [*ids, *format.step_tokens(step, i == 0)]
                prompts.append(ids)
    given = {
        "folder": str(models.prm),
        "architecture": "RsdProcessRewardModel" if two_class else None,
        "prompts": prompts,
    }
    results = _in_vllm(tmp_path / "site", given)
    assert {len(result["probs"]) for result in results} == {2 if two_class else 1}
    assert [result["probs"][-1] for result in results] == pytest.approx(rewards, abs=1e-5)
    assert max(rewards) - min(rewards) > 0.1
    cached = [result["cached"] for result in results]
    assert all(cached[1:3]) and all(cached[4:])  # all but the newest step, in whole blocks


def _in_vllm(site: Path, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs `vllm_process.py` where our package is installed as far as entry points show it."""
    about = site / "rsd_engine-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rsd-engine\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in entry_points().items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [os.environ["RSD_VLLM_PYTHON"], ROOT / "tests/integrations/vllm_process.py",
         json.dumps(given)],
        env=environment(site) | settings, cwd=site, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
