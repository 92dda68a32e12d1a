"""How a checkpoint's weights lie on disk, for people; no weights are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.checkpoints.gguf import GgufCheckpoint
from rsd_engine.models.checkpoints.open import FolderCheckpoint

_FOLDER_FORMATS = {"safetensors": "*.safetensors", ".bin": "pytorch_model*.bin"}
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class Storage:
    """How the weights are stored.

    Attributes:
        format: such as "safetensors", "safetensors (gptq)" or "GGUF (Q4_1)".
        num_files, num_bytes: of the files with weights; 0 where they are not on this machine, None
            where a checkpoint of another kind does not say.
    """

    format: str
    num_files: int | None
    num_bytes: int | None


def find_storage(checkpoint: Checkpoint) -> Storage:
    """How the weights of an open checkpoint are stored."""
    if isinstance(checkpoint, GgufCheckpoint):
        return _storage(f"GGUF{_gguf_type(checkpoint)}", _parts(checkpoint.path))
    method = (checkpoint.config().get("quantization_config") or {}).get("quant_method")
    suffix = f" ({method})" if method else ""
    if isinstance(checkpoint, FolderCheckpoint):
        for name, pattern in _FOLDER_FORMATS.items():
            if files := sorted(checkpoint.folder.glob(pattern)):
                return _storage(name + suffix, files)
        return Storage(f"unknown{suffix}", 0, 0)
    return Storage(type(checkpoint).__name__ + suffix, None, None)


def _storage(name: str, files: list[Path]) -> Storage:
    return Storage(name, len(files), sum(file.stat().st_size for file in files))


def _gguf_type(checkpoint: GgufCheckpoint) -> str:
    """What most tensors are stored as, by the file's own account."""
    import gguf

    number = checkpoint.field("general.file_type")
    if number not in list(gguf.LlamaFileType):
        return ""
    return f" ({gguf.LlamaFileType(number).name.removeprefix('ALL_').removeprefix('MOSTLY_')})"


def _parts(path: Path) -> list[Path]:
    """All parts of a split file; the file alone if it is not split."""
    found = _PART.search(path.name)
    if found is None:
        return [path]
    return sorted(path.parent.glob(path.name[: found.start()] + "-*-of-*.gguf"))
