"""Reads the tokenizer of a folder. The checkpoint's own tokenizer.json decides, where there is one.

The files are checked first: the tokenizers library takes gigabytes for one huge id, or ends the
process. Code that lies in a folder is never run, and nobody is asked whether it may.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rsd_engine.models.schemas import (
    IdsSchema,
    TokenizerConfigSchema,
    TokenizerSchema,
    read_json,
)
from rsd_engine.steps.sharing import splits_text
from rsd_engine.steps.vocabulary import backend_of

_LOG = logging.getLogger(__name__)

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_IDS = ("vocab.json", "added_tokens.json")
# Without tokenizer.json transformers converts one of these, with the packages that it needs.
_VOCABULARIES: dict[str, tuple[str, ...]] = {
    "*.model": ("sentencepiece", "protobuf"),
    "*.tiktoken": ("tiktoken",),
    "vocab.json": (),
    "vocab.txt": (),
}
_MODULES = {"protobuf": "google.protobuf"}


def folder_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer of a folder.

    Raises:
        ValueError: there is none, a file of it is not what its schema allows, it needs code from
            the folder, or packages that are not installed.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    contents = _checked_files(folder)
    # AutoTokenizer of transformers 5 rebuilds a tokenizer by model type and may split text
    # otherwise than the checkpoint's own tokenizer.json.
    if "tokenizer.json" in contents:
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises all kinds
            raise ValueError(f"tokenizer.json is not what its library reads: {error}") from error
        _compare_with_auto(folder, contents["tokenizer.json"], tokenizer)
        return tokenizer
    # Without any of these, transformers silently makes an empty tokenizer.
    found = [name for name in _VOCABULARIES if next(folder.glob(name), None)]
    auto_map = contents.get("tokenizer_config.json", {}).get("auto_map") or ()
    if "AutoTokenizer" in auto_map or isinstance(auto_map, list):  # which is how it began
        raise ValueError(
            "it has code for its tokenizer (auto_map in tokenizer_config.json), which is never "
            "run, and no tokenizer.json; convert the tokenizer to one"
        )
    if not found:
        raise ValueError(f"it has none of tokenizer.json, {', '.join(_VOCABULARIES)}")
    _check_packages(next(folder.glob(found[0])), _VOCABULARIES[found[0]])
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _checked_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of every file of the tokenizer, checked, by its name."""
    named = ("tokenizer.json", *_SETTINGS, *_IDS)
    contents = {name: read_json(folder / name) for name in named if (folder / name).is_file()}
    for name, content in contents.items():
        if name == "tokenizer.json":
            TokenizerSchema.check(content, name)
        elif name in _IDS:
            IdsSchema.check({"tokens": content}, name)
        else:
            TokenizerConfigSchema.check(content, name)
    return contents


def _check_packages(file: Path, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if not _is_installed(_MODULES.get(name, name))]
    if missing:
        raise ValueError(
            f"it has {file.name} and no tokenizer.json; converting it needs packages that are not "
            f"installed: pip install {' '.join(missing)}"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def _compare_with_auto(folder: Path, content: dict[str, Any], tokenizer: Any) -> None:
    """Says so if transformers' AutoTokenizer would cut text into words otherwise."""
    auto = _by_auto(folder, content)
    if auto is not None and splits_text(backend_of(auto)) != splits_text(backend_of(tokenizer)):
        _LOG.warning(
            "%s: AutoTokenizer of transformers reads it as %s, which replaces how the checkpoint's "
            "tokenizer.json cuts text into words; the engine keeps to tokenizer.json, so other "
            "programs may give the same text other tokens",
            folder, type(auto).__name__,
        )  # fmt: skip


def _by_auto(folder: Path, content: dict[str, Any]) -> Any:
    """What AutoTokenizer makes of a folder, but without the vocabulary, which would take long.

    Args:
        folder: the checkpoint.
        content: of its tokenizer.json.

    Returns:
        None if it cannot read the folder, or the tokenizer is of a kind that needs its vocabulary.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    if content["model"].get("type") != "BPE":
        return None
    model = {**content["model"], "vocab": {}, "merges": []}
    content = {**content, "model": model, "added_tokens": [], "post_processor": None}
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        for name in ("config.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                shutil.copy(folder / name, work)
        before = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity(transformers_logging.CRITICAL)
        try:
            return AutoTokenizer.from_pretrained(work, trust_remote_code=False)
        except Exception:  # whatever it cannot read, there is nothing to compare
            return None
        finally:
            transformers_logging.set_verbosity(before)
