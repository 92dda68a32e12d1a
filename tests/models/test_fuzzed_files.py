"""Damaged weight files: an error of one line, or a model; never a crash, a hang or much memory."""

from __future__ import annotations

import json
import random
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd_engine.models.loader import load_language_model
from tests.models.checkpoints import make_model, save

_QUICK, _MANY = 40, 840
_ODD: tuple[Any, ...] = (
    None, "", "..", "../x", "/etc/passwd", 0, -1, 2**31, 2**63, 1e308, True, [], {}, [[]], "F32",
    "a" * 10_000, "a\nb", "BOOL", [2**40, 2**40], [0, 2**62], float("nan"),
)  # fmt: skip
_WORDS = (0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)

Mutate = Callable[[Path, random.Random], Path]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in each format, to be damaged in copies."""
    pytest.importorskip("gguf")
    from tests.models.gguf_files import write_gguf

    root = tmp_path_factory.mktemp("originals")
    model = make_model("qwen2-untied", num_hidden_layers=1)
    for name in ("index", "safetensors", "bin"):
        save(model, root / name)
    weights = load_file(root / "index" / "model.safetensors")
    (root / "index" / "model.safetensors").rename(root / "index" / "a.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "a.safetensors")})
    (root / "index" / "model.safetensors.index.json").write_text(index)
    (root / "bin" / "model.safetensors").unlink()
    torch.save(weights, root / "bin" / "pytorch_model.bin")
    save_file(weights, root / "safetensors" / "model.safetensors")
    (root / "gguf").mkdir()
    write_gguf(root / "gguf" / "m.gguf", model)
    return root


def damage_index(folder: Path, rng: random.Random) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(_damaged_json(path.read_text(), rng))
    return folder


def damage_safetensors(folder: Path, rng: random.Random) -> Path:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.5:
        header = _damaged_json(content[8 : 8 + length].decode(), rng).encode()
        size = len(header) if rng.random() < 0.8 else rng.choice(_WORDS)
        path.write_bytes(struct.pack("<Q", size) + header + content[8 + length :])
    else:
        path.write_bytes(_damaged_bytes(content, rng, 8 + length))
    return folder


def damage_bin(folder: Path, rng: random.Random) -> Path:
    path = folder / "pytorch_model.bin"
    if rng.random() < 0.7:
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in records if name.endswith("data.pkl"))
        records[name] = _damaged_bytes(records[name], rng, len(records[name]))
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, content)
    else:
        content = path.read_bytes()
        path.write_bytes(_damaged_bytes(content, rng, len(content)))
    return folder


def damage_gguf(folder: Path, rng: random.Random) -> Path:
    path = folder / "m.gguf"
    content = path.read_bytes()
    path.write_bytes(_damaged_bytes(content, rng, 1800))
    return path


def _damaged_json(text: str, rng: random.Random) -> str:
    if rng.random() < 0.2:
        return text[: rng.randrange(len(text))] + rng.choice(
            ("", "]", "\0", "[" * 5000, "9" * 5000)
        )
    content = json.loads(text)
    for _ in range(rng.choice((1, 1, 3))):
        inner = content
        while isinstance(inner, dict) and inner:
            key = rng.choice([key for key in inner if key != "metadata"] or list(inner))
            if rng.random() < 0.4 or not isinstance(inner[key], dict | list):
                inner[rng.choice((key, key, key + "x", "a\nb"))] = rng.choice(_ODD)
                break
            if isinstance(inner[key], list):
                place = rng.randrange(len(inner[key]) + 1)
                inner[key] = [*inner[key][:place], rng.choice(_ODD), *inner[key][place + 1 :]]
                break
            inner = inner[key]
    return json.dumps(content)


def _damaged_bytes(content: bytes, rng: random.Random, header: int) -> bytes:
    """A few changes, most of them within the first `header` bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        end = header if rng.random() < 0.9 else len(changed)
        at = rng.randrange(max(1, min(end, len(changed))))
        kind = rng.random()
        if kind < 0.4:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.7:
            size = rng.choice((4, 8))
            word = rng.choice(_WORDS).to_bytes(8, "little")[:size]
            changed[at : at + size] = word
        elif kind < 0.85:
            del changed[at : at + rng.randrange(1, 9)]
        else:
            del changed[at:]
    return bytes(changed)


DAMAGE: dict[str, Mutate] = {
    "index": damage_index,
    "safetensors": damage_safetensors,
    "bin": damage_bin,
    "gguf": damage_gguf,
}


def check(originals: Path, folder: Path, case: int) -> None:
    kind = list(DAMAGE)[case % len(DAMAGE)]
    shutil.copytree(originals / kind, folder)
    source = DAMAGE[kind](folder, random.Random(case))
    start = time.perf_counter()
    try:
        load_language_model(source, max_rows=1, max_positions=64)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1500, f"case {case}"
    except Exception as error:
        raise AssertionError(f"case {case}, {kind}: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(folder)
    assert time.perf_counter() - start < 5, f"case {case}, {kind}"


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(range(_QUICK), id="quick"),
        pytest.param(range(_QUICK, _MANY), id="many", marks=pytest.mark.slow),
    ],
)
def test_damaged_files(originals: Path, tmp_path: Path, cases: range) -> None:
    before = peak_memory()
    for case in cases:
        check(originals, tmp_path / "damaged", case)
    assert peak_memory() - before < 1e9
