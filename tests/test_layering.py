"""Imports point down: a module imports its own layer's group and lower layers, nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"rsd_kernels": ROOT / "kernels" / "rsd_kernels", "rsd_engine": ROOT / "rsd_engine"}

# Lowest first. An entry covers a module and everything inside it; the longest that fits counts.
# Entries of one layer do not import each other. A new module that no entry covers fails the test:
# write down here where it belongs.
LAYERS: list[tuple[str, ...]] = [
    ("rsd_kernels",),
    ("rsd_engine.arguments", "rsd_engine.logs"),
    ("rsd_engine.steps",),
    ("rsd_engine.outputs", "rsd_engine.sampling_params"),
    ("rsd_engine.memory",),
    ("rsd_engine.models", "rsd_engine.loop"),
    ("rsd_engine.core", "rsd_engine.roofline"),
    ("rsd_engine.engine",),
    ("rsd_engine",),
    ("rsd_engine.demo", "rsd_engine.doctor", "rsd_engine.server", "rsd_engine.client"),
    ("rsd_engine.integrations", "rsd_engine.evaluate"),
    ("rsd_engine.cli",),
]
# The package itself is only its __init__, which re-exports the public face.
EXACT = {"rsd_engine"}

LAYER_OF = {entry: layer for layer, entries in enumerate(LAYERS) for entry in entries}


def module_files() -> dict[str, Path]:
    """Module name -> file, for both packages. A file with nothing but a docstring counts too."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def entry_of(module: str) -> str | None:
    """The longest entry that covers `module`."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        entry = ".".join(parts[:length])
        if entry in LAYER_OF and (entry == module or entry not in EXACT):
            return entry
    return None


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every name imported anywhere in the file, in functions and type-checking blocks too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > 0:
                raise ValueError(f"line {node.lineno}: write absolute imports")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(text: str, modules: set[str]) -> set[str]:
    """Which of `modules` a source imports: `from a.b import c` is a.b.c if there is one, or a.b."""
    found = set()
    for name in imported_names(ast.parse(text)):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        if name:
            found.add(name)
    return found


def unused_entries(modules: set[str]) -> list[str]:
    """Entries of LAYERS that cover no module: what they named has gone, or was misspelt."""
    used = {entry_of(module) for module in modules}
    return sorted(entry for entry in LAYER_OF if entry not in used)


def op_folders(modules: set[str]) -> set[str]:
    """The folders of `rsd_kernels` that hold an op: its kernel, its twin."""
    parts = [module.split(".") for module in modules]
    return {part[1] for part in parts if len(part) == 3 and part[2] in ("kernel", "twin")}


def is_twin(module: str) -> bool:
    name = module.rpartition(".")[2]
    return name == "twin" or name.endswith("_twin")


def reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    """`start` and everything that it imports, directly or not."""
    found, left = {start}, [start]
    while left:
        new = imports.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def twin_errors(imports: dict[str, set[str]]) -> list[str]:
    """The engine gets its ops through `ops` and `model_ops`, which choose kernel or twin."""
    return [
        f"{module} imports {target}: use rsd_kernels.ops or rsd_kernels.model_ops"
        for module, targets in imports.items()
        for target in sorted(targets)
        if module.startswith("rsd_engine") and is_twin(target)
    ]


def layer_errors(imports: dict[str, set[str]]) -> list[str]:
    errors = []
    for module, targets in imports.items():
        entry = entry_of(module)
        if entry is None:
            errors.append(f"{module} has no layer: add it to LAYERS")
            continue
        for target in sorted(targets - {module}):
            below = entry_of(target)
            if below is None or below == entry:
                continue
            if LAYER_OF[below] >= LAYER_OF[entry]:
                errors.append(f"{module} imports {target}, which is not below it")
    return errors


def find_cycle(imports: dict[str, set[str]]) -> list[str] | None:
    """A chain of modules that leads back to its first, or None."""
    done: set[str] = set()

    def visit(module: str, chain: list[str]) -> list[str] | None:
        if module in chain:
            return [*chain[chain.index(module) :], module]
        if module in done:
            return None
        for target in sorted(imports.get(module, set()) - {module}):
            cycle = visit(target, [*chain, module])
            if cycle is not None:
                return cycle
        done.add(module)
        return None

    for module in imports:
        cycle = visit(module, [])
        if cycle is not None:
            return cycle
    return None


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    files = module_files()
    found = {}
    for module, path in files.items():
        try:
            found[module] = imported_modules(path.read_text(), set(files))
        except ValueError as error:
            pytest.fail(f"{path.relative_to(ROOT)}: {error}")
    return found


def test_every_entry_of_the_layers_covers_a_module(imports: dict[str, set[str]]) -> None:
    assert unused_entries(set(imports)) == []


def test_the_engine_imports_no_twin(imports: dict[str, set[str]]) -> None:
    assert twin_errors(imports) == []


def test_what_ops_share_imports_no_op(imports: dict[str, set[str]]) -> None:
    folders = op_folders(set(imports))
    assert {"schedule", "sample", "attention", "linear"} < folders and "state" not in folders
    shared = [m for m in imports if m == "rsd_kernels.launch" or m.startswith("rsd_kernels.state")]
    assert len(shared) > 5
    for module in shared:
        ops = {target.split(".")[1] for target in imports[module] if target.count(".")}
        assert not ops & folders, f"{module} imports {sorted(ops & folders)}"


def test_twins_reach_no_triton(imports: dict[str, set[str]]) -> None:
    files = module_files()
    twins = [module for module in imports if is_twin(module)]
    assert len(twins) > 10
    for twin in twins:
        for module in sorted(reached(twin, imports)):
            names = {
                name.split(".")[0] for name in imported_names(ast.parse(files[module].read_text()))
            }
            assert "triton" not in names, f"{twin} reaches {module}, which imports triton"


def test_imports_point_down(imports: dict[str, set[str]]) -> None:
    assert layer_errors(imports) == []


def test_no_import_cycles(imports: dict[str, set[str]]) -> None:
    assert find_cycle(imports) is None


def test_kernels_do_not_know_the_engine(imports: dict[str, set[str]]) -> None:
    kernels = {module: targets for module, targets in imports.items() if "rsd_kernels" in module}
    assert kernels
    assert not [m for m, targets in kernels.items() if any("rsd_engine" in t for t in targets)]


def test_the_test_sees_what_it_should() -> None:
    modules = {"rsd_kernels.ops", "rsd_engine.loop.rsd", "rsd_engine.core", "rsd_engine"}
    lazy = "def f():\n    from rsd_engine.core import anything\n"
    assert imported_modules(lazy, modules) == {"rsd_engine.core"}
    assert imported_modules("from rsd_engine.loop import rsd", modules) == {"rsd_engine.loop.rsd"}
    up = {"rsd_engine.loop.rsd": {"rsd_engine.core"}}
    assert layer_errors(up) == [
        "rsd_engine.loop.rsd imports rsd_engine.core, which is not below it"
    ]
    sideways = {"rsd_engine.loop.rsd": {"rsd_engine.models.config"}}
    assert len(layer_errors(sideways)) == 1
    assert layer_errors({"rsd_engine.core.log": {"rsd_engine.loop.rsd", "rsd_kernels.ops"}}) == []
    assert layer_errors({"rsd_engine.unheard_of": set()}) == [
        "rsd_engine.unheard_of has no layer: add it to LAYERS"
    ]
    assert unused_entries({"rsd_engine.loop.rsd", "rsd_kernels"}) == sorted(
        LAYER_OF.keys() - {"rsd_engine.loop", "rsd_kernels"}
    )
    assert twin_errors({"rsd_engine.models.heads": {"rsd_kernels.reward.twin"}}) == [
        "rsd_engine.models.heads imports rsd_kernels.reward.twin: "
        "use rsd_kernels.ops or rsd_kernels.model_ops"
    ]
    assert twin_errors({"rsd_kernels.ops": {"rsd_kernels.bridge.merge_twin"}}) == []
    assert op_folders({"rsd_kernels.norm.twin", "rsd_kernels.state.rows"}) == {"norm"}
    assert reached("a", {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e"}}) == {"a", "b", "c"}
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    with pytest.raises(ValueError, match="line 1: write absolute imports"):
        imported_modules("from . import x", modules)
