"""Finds a model's files: a folder, a Hugging Face hub id or a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_engine.models.checkpoints.base import Checkpoint, StoredTensor
from rsd_engine.models.checkpoints.gguf import GgufCheckpoint
from rsd_engine.models.checkpoints.lora import AdapterCheckpoint, base_folder, is_adapter
from rsd_engine.models.checkpoints.quantized import expanded
from rsd_engine.models.checkpoints.tokenizer_folder import folder_tokenizer
from rsd_engine.models.checkpoints.weight_files import stored_tensors
from rsd_engine.models.schemas import read_json
from rsd_engine.steps.vocabulary import collector_paused

_DOWNLOADED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


class FolderCheckpoint(Checkpoint):
    """A folder as `save_pretrained` of transformers writes it."""

    def __init__(self, folder: Path, source: str | None = None) -> None:
        self.folder = folder
        self.source = source or str(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"model {self.source!r} has no config.json")

    def config(self) -> Mapping[str, Any]:
        return {**read_json(self.folder / "config.json"), **self.overrides}

    def tensors(self) -> Mapping[str, StoredTensor]:
        stored = stored_tensors(self.folder)
        return expanded(stored, self.config().get("quantization_config"))

    def weight_files(self) -> tuple[Path, ...]:
        names = {tensor.file for tensor in stored_tensors(self.folder).values()}
        return tuple(self.folder / name for name in sorted(names))

    def tokenizer(self) -> Any:
        return folder_tokenizer(self.folder)

    def generation_config(self) -> dict[str, Any] | None:
        path = self.folder / "generation_config.json"
        return read_json(path) if path.is_file() else None


def open_checkpoint(
    source: str | Path, revision: str | None = None, *, weights: bool = True
) -> Checkpoint:
    """Finds a model by folder, `.gguf` file or hub id; a hub id is downloaded unless it is cached.

    The folder may be that of a LoRA adapter, which names its base.

    Args:
        source: the model.
        revision: branch, tag or commit of a hub id.
        weights: whether to download the weights of a hub id too.

    Raises:
        ValueError: `source` is none of the three, neither the hub nor the local cache has it, or
            `revision` is given for a local path.
        ImportError: `source` is a GGUF file and the `gguf` package is not installed.
    """
    check_has_files(source)
    path = Path(source).expanduser()
    if revision is not None and path.exists():
        raise ValueError(f"revision={revision!r} has no meaning for the local path {str(path)!r}")
    if path.is_dir():
        if is_adapter(path):
            return AdapterCheckpoint(path, FolderCheckpoint(base_folder(path)))
        return FolderCheckpoint(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"GGUF file {str(path)!r} does not exist")
        return GgufCheckpoint(path)
    if path.exists():
        raise ValueError(f"model {str(path)!r} is a file; give the folder that it is in")
    return FolderCheckpoint(_from_hub(str(source), revision, weights), str(source))


def is_url(source: str | Path) -> bool:
    """Whether a model is named by a server's URL."""
    return str(source).lower().startswith(("http://", "https://"))


def check_has_files(source: str | Path) -> None:
    """Raises ValueError if a model is named by a server's URL."""
    if is_url(source):
        raise ValueError(
            f"model {str(source)!r} is on a server, and this needs its files; give a folder, a hub "
            "id or a GGUF file"
        )


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint, as transformers gives it.

    Raises:
        ValueError: it has none that can be read.
    """
    try:
        with collector_paused():
            return checkpoint.tokenizer()
    except ImportError:
        raise
    except BaseException as error:  # the tokenizers library raises all kinds, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split())
        raise ValueError(f"model {checkpoint.source!r} has no readable tokenizer: {why}") from error


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    """The local snapshot of a hub id, with safetensors where there are any, else .bin files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for files in _WEIGHTS if weights else ():
            patterns = [*_DOWNLOADED, files]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
            if any(folder.glob(files)):
                return folder
        if not weights:
            return Path(
                snapshot_download(name, revision=revision, allow_patterns=list(_DOWNLOADED))
            )
    except HFValidationError as error:
        raise ValueError(
            f"model {name!r} is not a folder, not a .gguf file and not a hub id (owner/name)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = " ".join(str(error).removeprefix("Got: ").split())
        raise ValueError(
            f"model {name!r} is not a local path, and the hub did not give it: {why}"
        ) from error
    return folder
