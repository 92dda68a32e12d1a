"""A policy is one change in each of three files: here one is added to a copy of the packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.text import replace_once

ROOT = Path(__file__).parents[2]
CHANGES = {
    "rsd_kernels/policy/formula.py": (
        ("    LOGISTIC = 4", "    SQUARE = 5  # a r^2, for rewards in [0, 1]\n    LOGISTIC = 4"),
        (
            "    z = -a * (reward - b)",
            "    if kind == PolicyKind.SQUARE:\n        return a * reward**2\n"
            "    z = -a * (reward - b)",
        ),
    ),
    "rsd_kernels/policy/kernel.py": (
        (
            "_LARGEST_EXPONENT = tl",
            "_SQUARE = tl.constexpr(int(PolicyKind.SQUARE))\n_LARGEST_EXPONENT = tl",
        ),
        (
            "    return (b_uniform",
            "    b_w = tl.where(b_kind == _SQUARE, b_a64 * b_r * b_r, b_w)\n    return (b_uniform",
        ),
    ),
    "rsd_engine/steps/policies.py": (
        (
            "_POLICIES = {",
            "@dataclass(frozen=True)\nclass Square(Policy):\n"
            "    kind = PolicyKind.SQUARE\n    scale: float = 1.0\n\n\n_POLICIES = {",
        ),
    ),
}
CHECK = """
import torch, triton, triton.language as tl
from rsd_engine.steps.policies import check_policy, parse_policy
from rsd_kernels.policy.kernel import accepts

@triton.jit
def decide(rewards, draws, out, kind, a, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    reward = tl.load(rewards + at)
    one = tl.full((BLOCK,), 1.0, tl.float32)
    kept = accepts((one * kind).to(tl.int32), one * a, one, reward, tl.load(draws + at))
    tl.store(out + at, kept.to(tl.int32))

square = parse_policy("square:0.5")
check_policy(square)
assert square.weight(0.5) == 0.125 and square.weight(float("nan")) == 0.0
rewards = torch.linspace(0, 1, 256)
draws = torch.rand(256, generator=torch.Generator().manual_seed(0))
out = torch.zeros(256, dtype=torch.int32)
kind, a, _ = square.columns()
decide[(1,)](rewards, draws, out, kind, a, BLOCK=256)
wanted = [int(u < square.weight(r)) for r, u in zip(rewards.tolist(), draws.tolist())]
assert out.tolist() == wanted and 0 < sum(wanted) < 256
print("kept", sum(wanted))
"""


def test_a_policy(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    ignored = shutil.ignore_patterns("checkpoints", "__pycache__", "*.so")
    shutil.copytree(ROOT / "kernels/rsd_kernels", tmp_path / "rsd_kernels", ignore=ignored)
    shutil.copytree(ROOT / "rsd_engine", tmp_path / "rsd_engine", ignore=ignored)
    for name, edits in CHANGES.items():
        text = (tmp_path / name).read_text()
        for old, new in edits:
            text = replace_once(text, old, new)
        (tmp_path / name).write_text(text)
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept")
