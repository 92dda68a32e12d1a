"""rsd_kernels as a package of the Kernels hub: what is written, and that it runs under any name."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rsd_kernels import torch_ops

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "kernels" / "hub" / "build.py"
ALLOWED = {"torch", "triton", *sys.stdlib_module_names}


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hub = load(SCRIPT, "hub_build")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("hub") / "out"
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def own_ops() -> set[str]:
    names, mark = (schema.name for schema in torch._C._jit_get_all_schemas()), torch_ops.NAMESPACE
    return {name.split("::")[1] for name in names if name.startswith(f"{mark}::")}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Everything in a tree but what only type checkers read."""
    if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from executed(child)


def test_every_import_is_relative_or_allowed(out: Path) -> None:
    files = list((out / "torch-ext" / "rsd_kernels").rglob("*.py"))
    assert len(files) > 50
    for path in files:
        for node in executed(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert str(node.module).split(".")[0] in ALLOWED, f"{path}:{node.lineno}"
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert names <= ALLOWED, f"{path}:{node.lineno}"


def test_nothing_but_imports_differs_from_the_source(out: Path) -> None:
    """Undone by the file's place in the package, every copy is its source."""
    written, package = ("__init__.py", "namespace.py"), out / "torch-ext" / "rsd_kernels"
    for path in package.rglob("*.py"):
        place = path.relative_to(package)
        source = ROOT / "kernels" / "rsd_kernels" / place
        if str(place) in written:
            continue
        lines = path.read_text().splitlines()
        for copied, line in zip(lines, source.read_text().splitlines(), strict=True):
            found = re.fullmatch(r"( *)from (\.+)([\w.]*) (import .*)", copied)
            if found:
                up = [*("rsd_kernels", *place.parts)[: -len(found[2])], found[3]]
                copied = f"{found[1]}from {'.'.join(filter(None, up))} {found[4]}"
            assert copied == line


def test_the_api_is_every_op_of_torch_ops(out: Path) -> None:
    tree = ast.parse((out / "torch-ext" / "rsd_kernels" / "__init__.py").read_text())
    [names] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert set(names) == own_ops() | {"PolicyKind", "torch_ops"}
    table = re.findall(r"^\| `(\w+)` \|", (out / "CARD.md").read_text(), re.MULTILINE)
    assert set(table) == own_ops()
    docs = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "kernels.md").read_text(), re.MULTILINE)
    assert table == docs


def test_it_runs_under_another_name_beside_the_original(out: Path) -> None:
    """Two builds and rsd_kernels in one process, with ops of their own and equal results."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("under_other_names.py"), out],
        cwd=out, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout)
    for name, backend in zip(facts["names"], ("cpu", "cuda"), strict=True):
        assert re.fullmatch(rf"_rsd_kernels_{backend}_[0-9a-f]{{10}}", name)
    assert facts["modules"] > 50 and not facts["absolute"]
    assert facts["equal"] == [True, True] and facts["apart"]
    assert facts["own tests"] == 3


def test_a_folder_with_something_in_it_is_refused(out: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, out], capture_output=True, text=True)
    assert done.returncode == 2 and f"{out} is not empty" in done.stderr


def test_the_id_changes_with_any_file() -> None:
    files = hub.package_files()
    changed = files | {"launch.py": files["launch.py"] + "\n"}
    assert hub.unique_id(files) == hub.unique_id(dict(reversed(files.items())))
    assert hub.unique_id(files) != hub.unique_id(changed)


@pytest.mark.parametrize(
    ("line", "place", "wanted"),
    [
        ("from rsd_kernels.norm.twin import a\n", "launch.py", "from .norm.twin import a\n"),
        ("from rsd_kernels import launch\n", "launch.py", "from . import launch\n"),
        ("from rsd_kernels import launch\n", "norm/twin.py", "from .. import launch\n"),
        ("from rsd_kernels.norm import b\n", "norm/__init__.py", "from ..norm import b\n"),
        ("if x:\n    from rsd_kernels.a import (\n        b,\n    )\n", "a/b/c.py",
         "if x:\n    from ...a import (\n        b,\n    )\n"),
        ("from rsd_kernels_more import a\n", "a.py", "from rsd_kernels_more import a\n"),
        ("t = 'from rsd_kernels.a import b'\n", "a.py", "t = 'from rsd_kernels.a import b'\n"),
    ],
)  # fmt: skip
def test_how_an_import_is_rewritten(line: str, place: str, wanted: str) -> None:
    assert hub.relative(line, hub.SOURCE / place) == wanted


def test_an_import_without_a_relative_form_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: `import rsd_kernels.norm` has no relative form"):
        hub.relative("\nimport rsd_kernels.norm\n", hub.SOURCE / "launch.py")


@pytest.mark.slow
@pytest.mark.skipif("RSD_HUB_PYTHON" not in os.environ, reason="RSD_HUB_PYTHON names no Python")
def test_the_hubs_own_loader_takes_it(out: Path) -> None:
    script = Path(__file__).with_name("load_from_hub.py")
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [os.environ["RSD_HUB_PYTHON"], script, out],
        cwd=out, env=variables | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["name"] == found["id"] and found["name"].startswith("_rsd_kernels_cpu_")
    assert set(found["api"]) == own_ops() | {"PolicyKind", "torch_ops"}
    assert found["linear"] and found["compiled"] and not found["absolute"]
    assert found["build.toml"] == ["cpu", "cuda"]
