"""What importing the packages does and does not need."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_package_of_ours_is_called_kernels() -> None:
    """`kernels` is the import name of a Hugging Face package that transformers probes."""
    for folder in (ROOT, ROOT / "kernels", ROOT / "tests"):
        assert not (folder / "kernels" / "__init__.py").exists()
        assert not (folder / "kernels.py").exists()


def test_import_kernels_never_finds_a_regular_package_of_ours() -> None:
    """From the checkout, where the folder is on sys.path. A namespace portion shadows nothing."""
    code = """
        import importlib.util
        spec = importlib.util.find_spec("kernels")
        print(spec.origin if spec is not None else None)
    """
    origin = run_python(code, ROOT)
    assert origin == "None" or "site-packages" in origin


def test_transformers_models_import_from_the_checkout() -> None:
    run_python("from transformers import LlamaForCausalLM, Qwen2ForCausalLM", ROOT)


@pytest.mark.parametrize("module", ["rsd_engine", "rsd_kernels", "rsd_kernels.ops"])
def test_imports_without_triton(module: str, tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.modules["triton"] = None  # every `import triton` now raises ImportError
        import {module}
    """
    run_python(code, tmp_path)


def test_doctor_runs_without_triton(tmp_path: Path) -> None:
    code = """
        import sys
        sys.modules["triton"] = None
        from rsd_engine import doctor
        doctor.main()
    """
    assert "attention" in run_python(code, tmp_path)


def test_demo_runs_without_triton(tmp_path: Path) -> None:
    code = """
        import sys
        sys.modules["triton"] = None
        from rsd_engine.cli import main
        sys.argv = ["rsd", "demo", "1", "--compare", "1", "--device", "cpu"]
        main()
    """
    assert "[draft" in run_python(code, tmp_path)


@pytest.mark.parametrize("module", ["cuda.build", "cpu.build"])
def test_building_needs_only_the_standard_library(module: str) -> None:
    """setup.py imports it before anything is installed."""
    code = f"""
        import sys
        class OnlyStandardLibrary:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] not in {{*sys.stdlib_module_names, "rsd_kernels"}}:
                    raise ImportError(name)
        sys.path.insert(0, {str(ROOT / "kernels")!r})
        sys.meta_path.insert(0, OnlyStandardLibrary())
        import rsd_kernels.{module}
    """
    run_python(code, ROOT)
