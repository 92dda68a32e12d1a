"""Links lead somewhere, and files and names that documents mention exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import rsd_engine
from rsd_engine.core.engine_core import EngineCore
from tests.docs.documents import DOCUMENTS, ROOT, Document

PACKAGES = ("kernels/rsd_kernels", "rsd_engine")  # recipes name files from here
_PATH = re.compile(r"[\w.\-]+(/[\w.\-]+)*/?")
_SUFFIXES = (".py", ".md", ".toml", ".cpp", ".cu", ".h", ".svg")
_MODULE = re.compile(r"(rsd_engine|rsd_kernels|bench)(\.\w+)+")
_MEMBER = re.compile(r"([A-Z]\w+)\.([a-z]\w*)")
_ANYWHERE = ("kernels", "rsd_engine", "examples", "bench", "tests")
EXPORTS = {name: getattr(rsd_engine, name) for name in rsd_engine.__all__}

each = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


def test_all_documents_are_found() -> None:
    names = {document.name for document in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/usage.md"} <= names


@each
def test_links(document: Document) -> None:
    for link in document.links:
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = document.path.parent / file if file else document.path
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in Document(target).anchors, f"{link}: no such heading"


def test_every_document_in_docs_is_listed_in_the_readme() -> None:
    linked = Document(ROOT / "README.md").links
    for path in (ROOT / "docs").glob("*.md"):
        assert f"docs/{path.name}" in linked


def looks_like_a_path(text: str) -> bool:
    """A file or folder of this repository, neither a hub id nor a name to be filled in."""
    if not _PATH.fullmatch(text) or any(part.isupper() for part in re.split(r"[/.]", text)):
        return False
    return text.endswith((*_SUFFIXES, "/")) or ("/" in text and text.lower() == text)


def exists(text: str, document: Document) -> bool:
    places = (document.path.parent, ROOT, *(ROOT / package for package in PACKAGES))
    if any((place / text).exists() for place in places):
        return True
    bare = "/" not in text.rstrip("/")
    return bare and any(_first(ROOT / folder, text) for folder in _ANYWHERE)


def _first(folder: Path, name: str) -> Path | None:
    return next(folder.rglob(name.rstrip("/")), None)


@each
def test_paths(document: Document) -> None:
    named = {text for text in document.inline_code if looks_like_a_path(text)}
    missing = {text for text in named if not exists(text, document)}
    assert not missing, f"{document.name} names files that do not exist"


@each
def test_modules(document: Document) -> None:
    for text in document.inline_code:
        if _MODULE.fullmatch(text):
            assert is_importable(text), f"there is no {text}"


def is_importable(name: str) -> bool:
    """A module, or something in one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, member = name.rpartition(".")
        return "." in module and hasattr(importlib.import_module(module), member)
    return True


@each
def test_members(document: Document) -> None:
    classes = EXPORTS | {"EngineCore": EngineCore}
    for owner, member in _MEMBER.findall(" ".join(document.inline_code)):
        if owner in classes:
            fields = getattr(classes[owner], "__dataclass_fields__", {})
            assert hasattr(classes[owner], member) or member in fields, f"no {owner}.{member}"


def test_the_tests_see_what_they_should() -> None:
    here = Document(ROOT / "README.md")
    assert looks_like_a_path("rsd_engine/nowhere.py") and not exists("rsd_engine/nowhere.py", here)
    assert looks_like_a_path("no_such_kernel.py") and not exists("no_such_kernel.py", here)
    assert exists("twin.py", here) and exists("policy/formula.py", here)
    assert not looks_like_a_path("Qwen/Qwen2.5-Math-PRM") and not looks_like_a_path("DRAFT/x.py")
    assert is_importable("rsd_kernels.launch.Launch") and not is_importable("rsd_kernels.launch.No")
