"""Damaged JSON files of a checkpoint end in one line, soon, or in an engine that works."""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine, SamplingParams
from tests.tiny_models import TinyModels

FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
MAX_SECONDS = 5.0
MAX_KILOBYTES = 2**20  # 1 GiB more than before
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**16, 50_000, 50_000_000, 2**31 - 1, 2**31, 2**32, 2**63,
    10**400, 0.5, -1.5, 1e-300, 1e300, float("nan"), float("inf"), "", "x", "a\nb", "7", "\udc80",
    "9" * 5000, [], [None], [-1], [1, [2, [3]]], ["x"] * 50, {}, {"a": None}, {"type": "x"},
)  # fmt: skip


def mutated(content: Any, rng: random.Random) -> Any:
    """`content` with one to three places changed."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        parent, key = _place(content, rng)
        kind = rng.random()
        if kind < 0.15:
            del parent[key]
        elif kind < 0.25:
            other, name = _place(content, rng)
            parent[key] = copy.deepcopy(other[name])
        elif kind < 0.32 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif kind < 0.32:
            parent[f"{key}_"] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        if not content:
            break
    return content


def _place(content: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container inside `content`, which is not empty, and a key of it."""
    parent = content
    while True:
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        child = parent[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.3:
            return parent, key
        parent = child


def damage(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice(FILES)
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.05:
        path.write_text(text[: rng.randrange(len(text))], encoding="utf-8")
    else:
        path.write_text(json.dumps(mutated(json.loads(text), rng)), encoding="utf-8")


def outcome(folder: Path) -> str | None:
    """What an engine says of the folder; None if it answers a prompt."""
    try:
        with Engine(target=folder, device="cpu", max_model_len=64, max_num_seqs=1) as engine:
            engine.generate(["ab 1.\n\n"], SamplingParams(max_tokens=3), use_tqdm=False)
    except (ValueError, MemoryError) as error:
        return str(error)
    return None


@pytest.fixture
def folder(tiny: TinyModels, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(tiny.target, tmp_path / "model")
    yield tmp_path / "model"


def try_cases(folder: Path, whole: Path, seeds: range) -> None:
    assert outcome(whole) is None  # and what is imported late is imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for seed in seeds:
        for name in FILES:
            shutil.copy(whole / name, folder / name)
        damage(folder, random.Random(seed))
        start = time.perf_counter()
        message = outcome(folder)
        assert time.perf_counter() - start < MAX_SECONDS, f"seed {seed}: {message}"
        refused += message is not None
        assert message is None or (message and "\n" not in message), f"seed {seed}: {message}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_KILOBYTES
    assert 0.2 < refused / len(seeds) < 0.95  # both kinds were met


def test_damaged_files(folder: Path, tiny: TinyModels) -> None:
    try_cases(folder, tiny.target, range(60))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_damaged_files(folder: Path, tiny: TinyModels) -> None:
    try_cases(folder, tiny.target, range(60, 1260))
