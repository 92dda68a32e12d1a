"""Folders that can be taken in at a glance, and files with one job."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES = 20  # in a folder, without those of its folders
MOST_LINES = 400  # of a file of product code
CODE = {".py", ".cpp", ".h", ".cu", ".cuh"}
PRODUCT = ("rsd_engine", "kernels", "csrc", "bench", "examples")


def code_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in found if path.suffix in CODE and "build" not in path.parts]


def test_no_folder_has_too_many_files() -> None:
    counts = Counter(path.parent for path in code_files(*PRODUCT, "tests"))
    assert len(counts) > 50
    crowded = {str(f.relative_to(ROOT)): n for f, n in counts.items() if n > MOST_FILES}
    assert crowded == {}, "put what belongs together in a folder of its own"


def test_no_file_of_the_product_is_too_long() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in code_files(*PRODUCT)}
    long = {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > MOST_LINES}
    assert long == {}, "split it where its jobs part"
