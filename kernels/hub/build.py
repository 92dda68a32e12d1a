"""Writes rsd_kernels as a package of Hugging Face's Kernels hub: `python kernels/hub/build.py OUT`.

OUT becomes a project for kernel-builder, which publishes it, with a build for each backend beside
it, `build/torch-BACKEND`, for `kernels.get_local_kernel(OUT)`. `project/` holds what is written by
hand; the modules that `rsd_kernels.torch_ops` reaches are copied from the one source, with relative
imports, since the hub gives every build a name of its own.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "rsd_kernels"
SOURCE = HERE.parent / PACKAGE
START = f"{PACKAGE}.torch_ops"
_OURS = re.compile(rf"from {PACKAGE}\b((?:\.\w+)*)")

_OPS = '''"""Written by the build: the namespace of its ops."""

import torch

_NAME = "{name}"
ops = getattr(torch.ops, _NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{{_NAME}}::{{op_name}}"
'''


def package_files() -> dict[str, str]:
    """The package's files by their paths in it, without `_ops.py`."""
    files = {path.relative_to(SOURCE).as_posix(): text for path, text in _reached().items()}
    written = (HERE / "project" / "torch-ext").glob("*.py")
    return files | {path.name: path.read_text(encoding="utf-8") for path in written}


def _reached() -> dict[Path, str]:
    """Every module that START imports, with the packages around it: file -> rewritten source."""
    left, found = {START}, dict[Path, str]()
    while left:
        module = left.pop()
        path = _file(module)
        if path is None or path in found:
            continue
        source = path.read_text(encoding="utf-8")
        found[path] = relative(source, path)
        left |= set(_imported(source)) | {module.rpartition(".")[0]}
    return found


def _file(module: str) -> Path | None:
    """Where a module of ours is; None for another name, such as one that a module defines."""
    first, *rest = module.split(".")
    path = SOURCE.joinpath(*rest)
    if first != PACKAGE:
        return None
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def _imported(source: str) -> Iterator[str]:
    """Names of ours that are imported anywhere in a source, and the modules they come from."""
    for node in _from_ours(source):
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _from_ours(source: str) -> Iterator[ast.ImportFrom]:
    """Raises ValueError for an import of ours that cannot be made relative."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            yield node
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    raise ValueError(
                        f"line {node.lineno}: `import {alias.name}` has no relative form: "
                        "write `from ... import ...`"
                    )


def relative(source: str, path: Path) -> str:
    """The source of the file at `path` with relative imports, and nothing else changed.

    Raises:
        ValueError: it has an import that cannot be made relative.
    """
    dots = "." * len(path.relative_to(SOURCE).parts)
    lines = source.splitlines(keepends=True)
    for node in _from_ours(source):
        line, at = lines[node.lineno - 1], node.col_offset  # no import follows a non-ASCII letter
        end = _OURS.sub(lambda match: f"from {dots}{match[1][1:]}", line[at:], count=1)
        lines[node.lineno - 1] = line[:at] + end
    return "".join(lines)


def write(out: Path) -> None:
    """The project, and a build for each of its backends."""
    files = package_files()
    shutil.copytree(
        HERE / "project", out, dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("torch-ext", "__pycache__"),
    )  # fmt: skip
    shutil.copy(HERE.parents[1] / "LICENSE", out)
    _write_all(out / "torch-ext" / PACKAGE, files)
    general = tomllib.loads((out / "build.toml").read_text(encoding="utf-8"))["general"]
    for backend in general["backends"]:
        name = f"_{PACKAGE}_{backend}_{unique_id(files)}"
        built = files | {"_ops.py": _OPS.format(name=name)}
        metadata = {
            "name": general["name"],
            "id": name,
            "version": general["version"],
            "license": general["license"],
            "python-depends": [],
            "backend": {"type": backend},
            "digest": {"algorithm": "sha256", "files": {p: _digest(t) for p, t in built.items()}},
        }
        folder = out / "build" / f"torch-{backend}"
        _write_all(folder, built | {"metadata.json": json.dumps(metadata, indent=2) + "\n"})


def unique_id(files: Mapping[str, str]) -> str:
    """The same for the same files only: two builds may be loaded in one process."""
    whole = "".join(f"{path}\0{text}\0" for path, text in sorted(files.items()))
    return hashlib.sha256(whole.encode()).hexdigest()[:10]


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _write_all(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())  # as its digest says, on Windows too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write; it must be empty or not be there")
    out: Path = parser.parse_args().out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        parser.error(f"argument out: {out} is not empty; give an empty folder or a new one")
    write(out)
    print(f"{out}: {len(package_files())} modules", file=sys.stderr)


if __name__ == "__main__":
    main()
