"""Random blocks are weights that models can have, and the benchmark runs on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from bench.quantised import large
from bench.quantised.large_files import LARGE, TINY, num_bytes, random_blocks, write_models
from rsd_engine.cli.plan import device


def test_random_blocks_are_weights_around_zero() -> None:
    blocks = random_blocks(64, 1024, np.random.default_rng(1))
    weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K)
    assert weights.shape == (64, 1024)
    assert np.isfinite(weights).all()
    deviation = 1024**-0.5
    assert abs(weights.mean()) < 0.02 * deviation  # 65,536 weights: 5 standard errors
    assert weights.std() == pytest.approx(deviation, rel=0.03)
    assert len(np.unique(weights)) > 1000


def test_the_sizes_are_those_of_qwen() -> None:
    """4.5 bits a weight of 7.6 and twice 1.5 billion; norms and biases have 32."""
    weights = 7_615_616_512 + 2 * 1_543_714_304
    assert num_bytes(LARGE) == pytest.approx(weights * 4.5 / 8, rel=2e-3)


def test_files_are_written_once(tmp_path: Path) -> None:
    paths = write_models(tmp_path, TINY)
    written = {path: path.stat().st_mtime_ns for path in paths.values()}
    assert sum(path.stat().st_size for path in written) > num_bytes(TINY)
    write_models(tmp_path, TINY)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_dry_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "read_bandwidth", lambda _: 1e10)
    monkeypatch.setattr(device, "product_rate", lambda _: 1e11)
    options = ("--dry-run", "--steps=4", "--step-tokens=5", "--context=20", "--acceptance=0.75")
    assert large.main([*options, f"--folder={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "weights draft Q4_K, target Q4_K, prm Q4_K" in shown
    found = json.loads(shown.splitlines()[-1])
    rsd, target = found["modes"]["rsd"], found["modes"]["target"]
    assert (rsd["steps"], rsd["rejected"], target["target_passes"]) == (4, 1, 5)
    assert all(seconds > 0 for seconds in rsd["role_seconds"].values())
    tiny = TINY.target
    matrices = 2 * tiny["hidden_size"] * (2 * tiny["hidden_size"] + 2 * 128 + 3 * 512)
    tables = 2 * tiny["vocab_size"] * tiny["hidden_size"]
    assert found["memory"]["formats"]["target"]["Q4_K"] == (matrices + tables) // 256 * 144
    assert found["plan"]["memory"]["weights"]["target"] == pytest.approx(
        found["memory"]["weights"]["target"], rel=0.02
    )
    assert found["peak_bytes"] > num_bytes(TINY)


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(large, "num_bytes", lambda _: 2**60)
    with pytest.raises(SystemExit, match=r"--folder .* has .* free, and .* are needed"):
        large.main(["--dry-run", f"--folder={tmp_path}"])
