"""The entry point: tells vLLM of our architectures, or leaves it as it is."""

from __future__ import annotations

import ast
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_MODELS = "rsd_engine.integrations.vllm_plugin.models"
# vLLM's name of an architecture -> a class of `models`.
ARCHITECTURES = {
    "Qwen2ForPrmModel": "ValueHeadRewardModel",  # as config.json of Skywork's checkpoints says
    # vLLM's own Qwen2ForProcessRewardModel stays what it is: this one is chosen by name.
    "RsdProcessRewardModel": "TwoClassRewardModel",
}

# What is taken from vLLM: file -> names at its top.
_NEEDED = {
    "model_executor/models/registry.py": ("ModelRegistry",),
    "model_executor/models/qwen2.py": ("Qwen2Model",),
    "model_executor/models/interfaces.py": ("SupportsPP",),
    "model_executor/models/interfaces_base.py": ("default_pooling_type",),
    "model_executor/models/utils.py": ("AutoWeightsLoader", "WeightsMapper", "maybe_prefix"),
    "model_executor/layers/pooler/seqwise/poolers.py": ("pooler_for_classify",),
}


def register() -> None:
    """Registers `ARCHITECTURES` with vLLM; a second call changes nothing.

    It never raises: a vLLM that lacks what the models need is left alone, and one line of the log
    says what that is. vLLM's files are read, not imported, since a process that imports its layers
    too early can no longer be forked.
    """
    try:
        refusal = _refusal(_folder_of_vllm())
        if refusal is None:
            _register_all()
    except Exception as error:  # whatever another version does: vLLM must start
        refusal = f"{type(error).__name__}: {error}"
    if refusal is not None:
        logger.warning("no reward models are registered with vLLM: %s", refusal)


def _folder_of_vllm() -> Path:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("vllm is not installed")
    return Path(spec.submodule_search_locations[0])


def _refusal(folder: Path) -> str | None:
    """The first thing that is needed and not there; None if all is."""
    for file, names in _NEEDED.items():
        path = folder / file
        found = set(_top_names(path)) if path.is_file() else set()
        for name in names:
            if name not in found:
                return f"this version has no {name} in vllm/{file}"
    return None


def _top_names(path: Path) -> Iterator[str]:
    """Classes, functions and variables at the top of a source file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _register_all() -> None:
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for architecture, name in ARCHITECTURES.items():
        if architecture not in known:  # vLLM's own, where a later version has one
            ModelRegistry.register_model(architecture, f"{_MODELS}:{name}")
