"""Runs two builds of the package under names of their own, in a process without rsd_kernels.

Takes the folder that `kernels/hub/build.py` wrote; prints what `test_hub.py` wants to know.
TRITON_INTERPRET=1 must be set.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_build(folder: Path) -> Any:
    name = json.loads((folder / "metadata.json").read_text())["id"]
    return load(name, folder / "__init__.py")


def run_kernel(hub: ModuleType) -> None:
    """A Triton kernel that calls functions of other modules, in the interpreter."""
    accept_module: Any = importlib.import_module(f"{hub.__name__}.reward.accept")
    heads: Any = importlib.import_module(f"{hub.__name__}.reward.heads")
    hidden, norm = torch.randn(3, 16), torch.rand(16)
    weight, bias = torch.randn(1, 16), torch.randn(1)
    kind = torch.ones(3, dtype=torch.int32)  # a threshold
    policy = kind, torch.full((3,), 0.5), torch.zeros(3), torch.rand(3)
    reward, accept = torch.empty(3), torch.empty(3, dtype=torch.int32)
    head = heads.ValueHead(norm, 1e-6, weight, bias)
    accept_module.reward_accept(hidden, head, *policy, reward=reward, accept=accept)
    normed = hidden * (hidden.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm
    wanted = torch.sigmoid(normed @ weight[0] + bias)
    torch.testing.assert_close(reward, wanted)
    assert accept.tolist() == (wanted >= 0.5).int().tolist()


def main() -> None:
    out = Path(sys.argv[1])
    hub, other = (load_build(out / "build" / f"torch-{name}") for name in ("cpu", "cuda"))
    names = [found.name for found in pkgutil.walk_packages(hub.__path__, f"{hub.__name__}.")]
    for name in names:  # with every Triton kernel
        importlib.import_module(name)
    run_kernel(hub)
    absolute = "rsd_kernels" in sys.modules

    from rsd_kernels import torch_ops

    x, norm, weight = torch.randn(3, 8).bfloat16(), torch.rand(8), torch.randn(6, 8).bfloat16()
    arguments = x, norm.bfloat16(), 1e-5, weight
    original = getattr(torch.ops, torch_ops.NAMESPACE)
    wanted = original.norm_gate_up(*arguments)
    facts = {
        "names": [hub.__name__, other.__name__],
        "modules": len(names),
        "absolute": absolute,
        "equal": [torch.equal(each.norm_gate_up(*arguments), wanted) for each in (hub, other)],
        "apart": len({original.norm_gate_up, hub.norm_gate_up, other.norm_gate_up}) == 3
        and hub.norm_gate_up is getattr(torch.ops, hub.__name__).norm_gate_up,
    }
    sys.modules["rsd_kernels"] = hub
    own = load("own_tests", out / "tests" / "test_rsd_kernels.py")
    tests = [test for name, test in vars(own).items() if name.startswith("test_")]
    for test in tests:
        test()
    print(json.dumps(facts | {"own tests": len(tests)}))


if __name__ == "__main__":
    main()
