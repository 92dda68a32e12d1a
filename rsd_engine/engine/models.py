"""Loads the three models and their tokenizers, and checks that they can work together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsd_engine.memory.page_pool import KVShape
from rsd_engine.models.checkpoints.open import (
    Checkpoint,
    load_tokenizer,
    open_checkpoint,
)
from rsd_engine.models.checkpoints.stop_ids import read_stop_ids
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.loader import load_language_model, load_reward_model
from rsd_engine.models.registry import reward_families
from rsd_engine.models.reward.family import PrmFormat, RewardFamily
from rsd_engine.steps.sharing import shares_vocabulary
from rsd_engine.steps.vocabulary import Vocabulary, read_vocabulary
from rsd_kernels.state.enums import Role

logger = logging.getLogger("rsd_engine")

ModelSource = str | Path | Checkpoint
"""A folder, hub id or GGUF file, or a checkpoint that was opened already."""


_WRITERS = {"draft": Role.DRAFT, "target": Role.TARGET}


@dataclass(frozen=True)
class _Tokens:
    """The tokenizer of a draft or target, and the ids that end its texts."""

    tokenizer: Any
    vocabulary: Vocabulary
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class WriterModel:
    """A draft or target model with what belongs to it."""

    model: LanguageModel
    tokenizer: Any
    vocabulary: Vocabulary
    generation_config: dict[str, Any]
    stop_ids: frozenset[int]  # that end a text


@dataclass(frozen=True)
class PrmModel:
    """A process reward model with what belongs to it."""

    model: RewardModel
    family: RewardFamily
    tokenizer: Any
    format: PrmFormat
    shares_vocabulary: bool  # with the writers: its tokens can be written on the device


@dataclass(frozen=True)
class ModelSet:
    """What an engine runs: all three roles, or one writer alone."""

    writers: dict[Role, WriterModel]
    prm: PrmModel | None

    @property
    def main(self) -> WriterModel:
        """The writer whose tokenizer, chat template and sampling defaults count."""
        return self.writers.get(Role.TARGET) or self.writers[Role.DRAFT]

    @property
    def modes(self) -> tuple[str, ...]:
        """What a request may ask for; the first is the default."""
        return (
            ("rsd", "target", "draft") if self.prm else tuple(r.name.lower() for r in self.writers)
        )

    @property
    def num_ids(self) -> int:
        """Ids below this one have a row in every writer and a spelling in its tokenizer."""
        return min(
            min(w.vocabulary.num_tokens, w.model.config.vocab_size) for w in self.writers.values()
        )

    @property
    def models(self) -> dict[Role, LanguageModel | RewardModel]:
        found: dict[Role, LanguageModel | RewardModel] = {
            role: writer.model for role, writer in self.writers.items()
        }
        if self.prm:
            found[Role.PRM] = self.prm.model
        return found

    @property
    def kv_shapes(self) -> dict[Role, KVShape]:
        return {role: m.config.kv_shape(m.dtype) for role, m in self.models.items()}

    @property
    def num_parameters(self) -> dict[Role, int]:
        return {role: model.num_parameters for role, model in self.models.items()}

    @property
    def eos_ids(self) -> frozenset[int]:
        """End-of-text ids: all that any writer names and that the models can write."""
        named = {i for writer in self.writers.values() for i in writer.stop_ids}
        return frozenset(i for i in named if i < self.num_ids)


def load_models(
    draft: ModelSource | None,
    target: ModelSource | None,
    prm: ModelSource | None,
    *,
    dtype: str | torch.dtype,
    device: torch.device,
    revision: str | None,
    max_rows: int,
    overrides: Mapping[str, Mapping[str, Any]],
) -> ModelSet:
    """Loads the models that are given.

    Raises:
        ValueError: neither all three models nor one writer alone is given, a checkpoint is bad, or
            draft and target do not share their tokens.
        MemoryError: the weights do not fit on the device.
    """
    given = {"draft": draft, "target": target, "prm": prm}
    names = {name for name, source in given.items() if source is not None}
    if names not in ({"draft", "target", "prm"}, {"target"}, {"draft"}):
        raise ValueError(
            f"got models for {sorted(names) or 'no role'}; give draft, target and prm, "
            "or target alone, or draft alone"
        )
    _check_overrides(overrides, names)
    opened = {
        name: _open(name, source, revision, overrides.get(name, {}))
        for name, source in given.items()
        if source is not None
    }
    options: dict[str, Any] = {"dtype": dtype, "device": device, "max_rows": max_rows}
    tokens = {name: _read_tokens(name, opened[name]) for name in _WRITERS if name in opened}
    if len(tokens) == 2:  # before the weights, which take long
        _check_same_tokens(tokens["draft"], tokens["target"])
    writers = {
        _WRITERS[name]: _load_writer(name, opened[name], found, options)
        for name, found in tokens.items()
    }
    reward_model = None
    if "prm" in opened:
        reward_model = _load_prm(opened["prm"], writers[Role.TARGET], options)
    models = ModelSet(writers, reward_model)
    _say_stop_ids(models)
    return models


def _check_overrides(overrides: Mapping[str, Mapping[str, Any]], names: set[str]) -> None:
    if not isinstance(overrides, Mapping):
        raise ValueError(f"hf_overrides must be a dict with a dict per role, got {overrides!r}")
    for name, values in overrides.items():
        if name not in names:
            raise ValueError(f"hf_overrides has {name!r}; the roles here are {sorted(names)}")
        if not isinstance(values, Mapping):
            raise ValueError(
                f"hf_overrides[{name!r}] must be a dict of fields of config.json, got {values!r}"
            )


def _open(
    name: str, source: ModelSource, revision: str | None, overrides: Mapping[str, Any]
) -> Checkpoint:
    if isinstance(source, Checkpoint):
        if overrides:
            raise ValueError(
                f"hf_overrides[{name!r}] needs a folder, a hub id or a GGUF file; an open "
                "checkpoint has its own overrides"
            )
        return source
    if not isinstance(source, str | Path) or not str(source).strip():
        raise ValueError(f"{name} must be a folder, a hub id or a GGUF file, got {source!r}")
    with _naming(name):
        local = Path(source).expanduser().exists()
        checkpoint = open_checkpoint(source, None if local else revision)
    checkpoint.overrides = overrides
    return checkpoint


def _read_tokens(name: str, checkpoint: Checkpoint) -> _Tokens:
    with _naming(name):
        tokenizer = load_tokenizer(checkpoint)
        stop_ids = read_stop_ids(checkpoint, tokenizer)
        return _Tokens(tokenizer, read_vocabulary(tokenizer), stop_ids)


def _load_writer(
    name: str, checkpoint: Checkpoint, tokens: _Tokens, options: dict[str, Any]
) -> WriterModel:
    with _naming(name), _fitting(name, checkpoint, options["device"]):
        model = load_language_model(checkpoint, **options)
        _say(name, checkpoint, model)
        return WriterModel(
            model,
            tokens.tokenizer,
            tokens.vocabulary,
            checkpoint.generation_config() or {},
            tokens.stop_ids,
        )


def _load_prm(checkpoint: Checkpoint, writer: WriterModel, options: dict[str, Any]) -> PrmModel:
    with _naming("prm"), _fitting("prm", checkpoint, options["device"]):
        tokenizer = load_tokenizer(checkpoint)
        model = load_reward_model(checkpoint, **options)
        _say("prm", checkpoint, model)
        family = reward_families()[model.config.architecture]
        return PrmModel(
            model=model,
            family=family,
            tokenizer=tokenizer,
            format=family.format(tokenizer),
            shares_vocabulary=shares_vocabulary(writer.tokenizer, tokenizer),
        )


def _check_same_tokens(draft: _Tokens, target: _Tokens) -> None:
    shared = range(min(draft.vocabulary.num_tokens, target.vocabulary.num_tokens))
    ours, theirs = draft.vocabulary.special_text, target.vocabulary.special_text
    clash = [i for i in shared if ours.get(i) != theirs.get(i)]
    if clash or not shares_vocabulary(draft.tokenizer, target.tokenizer):
        detail = ""
        if clash:
            i = clash[0]
            detail = (
                f" (id {i} is {ours.get(i)!r} in the draft and {theirs.get(i)!r} in the target)"
            )
        raise ValueError(
            "draft and target must share one tokenizer, for the target continues the draft's "
            f"tokens; these differ{detail}"
        )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Says which of the three models an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


@contextmanager
def _fitting(name: str, checkpoint: Checkpoint, device: torch.device) -> Iterator[None]:
    """Says what to change when a model does not fit into memory."""
    try:
        yield
    except RuntimeError as error:  # a CPU's allocator has no error of its own
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise MemoryError(
            f"{name}: {checkpoint.source} does not fit into the memory of {device}; choose a dtype "
            "of fewer bytes, a smaller model or another device"
        ) from error


def _say(name: str, checkpoint: Checkpoint, model: LanguageModel | RewardModel) -> None:
    logger.info(
        "%s: %s, %s, %.1f M parameters, %.1f MB of weights in %s",
        name, checkpoint.source, model.config.architecture, model.num_parameters / 1e6,
        model.weight_bytes / 1e6,
        str(model.decoder.weights.matrix_dtype).removeprefix("torch."),
    )  # fmt: skip


def _say_stop_ids(models: ModelSet) -> None:
    named = {i for writer in models.writers.values() for i in writer.stop_ids}
    tokenizer = models.main.tokenizer
    ends = [f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in sorted(models.eos_ids)]
    logger.info("end of text: %s", ", ".join(ends) or "no ids; outputs end by other limits")
    beyond = sorted(named - models.eos_ids)
    if beyond:
        logger.warning(
            "end of text: ids %s are ignored, ids of the models end at %d",
            beyond,
            models.num_ids - 1,
        )
