"""The probe of conditional nodes: it compiles, and its lines are read as they are meant."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from bench.kernels.conditional import command as conditional
from bench.lib import report
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
    probes = re.findall(r'\{"([a-z-]+)", Kind::', source)
    assert tuple(probes) == conditional.PROBES and set(conditional.NEEDED) < set(probes)


@pytest.mark.parametrize(
    "arch", ["sm_90", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("sm_80", "sm_100"))]
)
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


def test_each_probe_is_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that prints as the real one does: one probe fails, one hangs."""
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\n"
        "case $1 in\n"
        "  times) cat <<'END'\n" + "\n".join(LINES[1:3]) + "\nEND\n;;\n"
        "  early-in-while) echo wrong count >&2; exit 3;;\n"
        "  early-in-switch) exec sleep 9;;\n"
        "  *) echo '" + line("any", 2.5) + "';;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(conditional, "_PROBE_SECONDS", 0.5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(report, "machine", dict)
    assert conditional.main(["--binary", str(program)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["probes"]) == list(conditional.PROBES)
    failed = {name: probe["why"] for name, probe in found["probes"].items() if not probe["works"]}
    assert failed == {
        "early-in-while": "program ended with 3:\nwrong count",
        "early-in-switch": "program did not end in 0.5 s",
    }
    assert found["probes"]["switch"] == {"works": True, "us_a_turn": 2.5}
    assert found["saved_us_a_turn"] == {"8 kernels": 7.5}
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(conditional.ProbeError, match="program ended with 1"):
        conditional.main(["--binary", str(program)])
    assert not json.loads(capsys.readouterr().out.splitlines()[-1])["probes"]["while"]["works"]


@pytest.mark.parametrize("text", ["", "not a program"])
def test_a_program_made_for_another_machine_is_made_anew(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "foreign"
    if text:
        foreign.write_bytes(b"\x7fELF" + text.encode())
        foreign.chmod(0o755)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(conditional, "compile_probe", lambda folder, arch: folder / arch)
    with conditional._program(foreign) as program:
        assert program.name == "sm_90"


@pytest.mark.gpu
def test_every_loop_turns_as_often_as_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    """The probe itself ends with an error where the number of turns or kernels is another."""
    conditional.main(["--turns", "64"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len({case["case"] for case in found["cases"]}) == 9
    assert all(case["us_a_turn"] > 0 for case in found["cases"])


def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    conditional.main(["--dry-run"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cases"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        conditional.main([])
    assert "there is no CUDA device here" in capsys.readouterr().err
