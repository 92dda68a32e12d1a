"""Loads the package as a user of the hub does. Run by an interpreter that has `kernels`.

Takes the folder that `kernels/hub/build.py` wrote; prints what `test_hub.py` wants to know.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from kernels._rust import Build, Digest, DigestAlgorithm, Metadata


def main() -> None:
    loader: Any = importlib.import_module("kernels")
    folder = Path(sys.argv[1])
    sys.dont_write_bytecode = True  # it would not be in the digest
    package = loader.get_local_kernel(folder, backend="cpu")
    variant = folder / "build" / "torch-cpu"
    metadata = Metadata.read_from_file(variant / "metadata.json")
    # Raises an error for every file that is missing, unknown or other than it says.
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
    compiled = torch.compile(lambda x, weight: package.linear(x, weight) * 2, fullgraph=True)
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    found = {
        "name": package.__name__,
        "id": metadata.id,
        "api": sorted(package.__all__),
        "linear": torch.allclose(package.linear(x, weight), x @ weight.T, atol=1e-5),
        "compiled": torch.allclose(compiled(x, weight), x @ weight.T * 2, atol=1e-5),
        "build.toml": [str(backend) for backend in Build.open(folder).general.backends],
        "absolute": "rsd_kernels" in sys.modules,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
