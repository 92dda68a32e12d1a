"""The probe of conditional nodes: it compiles, and its lines are read as they are meant."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from bench.kernels import conditional, loop_ops
from rsd_kernels.cuda import build as cuda_build


def line(case: str, us: float, kernels: int = 8, reads: bool = False) -> str:
    return json.dumps(
        {"case": case, "kernels": kernels, "reads": reads, "us_a_turn": us, "spread_us": 0.1}
    )


LINES = [
    "not a case",
    line(conditional.BASELINE, 20.0),
    line("WHILE, SWITCH of 15", 12.5),
    line(conditional.BASELINE, 220.0, kernels=64, reads=True),
    line("WHILE, SWITCH of 15", 212.0, kernels=64, reads=True),
]


def test_lines_of_the_probe() -> None:
    cases = conditional.parse(LINES)
    assert len(cases) == 4
    assert conditional.saved(cases) == {"8 kernels": 7.5, "64 kernels that read": 8.0}
    assert conditional.table(cases).splitlines() == [
        "us a turn, by kernels in it      8  64 that read",
        "---------------------------  -----  ------------",
        "host, a graph a turn, waits  20.00        220.00",
        "WHILE, SWITCH of 15          12.50        212.00",
    ]


def test_the_source_prints_what_is_read() -> None:
    source = conditional.SOURCE.read_text(encoding="utf-8")
    for name in (conditional.BASELINE, "WHILE, SWITCH of 15"):
        assert f'"{name}"' in source
    for key in json.loads(LINES[1]):
        assert f'\\"{key}\\"' in source


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_compiles(arch: str, tmp_path: Path) -> None:
    search = cuda_build.find_nvcc(os.environ)
    if search.path is None:
        pytest.skip(search.reason)
    assert os.access(conditional.compile_probe(tmp_path, arch), os.X_OK)


def test_says_why_it_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\necho no such target >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("RSD_NVCC", str(compiler))
    with pytest.raises(conditional.ProbeError, match=r"nvcc ended with 3:\nno such target"):
        conditional.compile_probe(tmp_path, "sm_90")
    monkeypatch.setenv("RSD_NVCC", str(tmp_path / "nothing"))
    with pytest.raises(conditional.ProbeError, match="is not a program"):
        conditional.compile_probe(tmp_path, "sm_90")


@pytest.mark.gpu
def test_every_loop_turns_as_often_as_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    """The probe itself ends with an error where the number of turns or kernels is another."""
    conditional.main(["--turns", "64"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len({case["case"] for case in found["cases"]}) == 9
    assert all(case["us_a_turn"] > 0 for case in found["cases"])


def test_the_probe_as_a_part_of_bench_control(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conditional, "measure", lambda _: conditional.parse(LINES))
    loop_ops.main(["--dry-run", "--conditional"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["saved_us_a_turn"] == {"8 kernels": 7.5, "64 kernels that read": 8.0}
    monkeypatch.setattr(conditional, "measure", lambda _: conditional.parse(LINES)[1:])
    with pytest.raises(SystemExit, match="1 failed, the first: conditional nodes"):
        loop_ops.main(["--dry-run", "--conditional"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ops"]


def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    conditional.main(["--dry-run"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cases"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        conditional.main([])
    assert "there is no CUDA device here" in capsys.readouterr().err
