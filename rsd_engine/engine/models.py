"""Loads the three models and their tokenizers, and checks that they can work together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from rsd_engine.engine.memory_estimate import ModelMemory
from rsd_engine.engine.model_sources import (
    ModelSource,
    OpenOptions,
    check_roles,
    is_same_source,
)
from rsd_engine.engine.prompts import naming_model
from rsd_engine.engine.remote.model import RemoteModel
from rsd_engine.engine.rewards.merged import is_merged
from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_engine.memory.available import told_when_full
from rsd_engine.memory.page_pool import KVShape
from rsd_engine.models.checkpoints.open import Checkpoint, load_tokenizer
from rsd_engine.models.checkpoints.stop_ids import read_stop_ids
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.loader import (
    load_language_model,
    load_reward_model,
    read_language_config,
    read_reward_config,
    weight_form,
)
from rsd_engine.models.reward.family import PrmFormat, RewardFamily
from rsd_engine.steps.scorers import Scorer
from rsd_engine.steps.sharing import first_difference, first_special_difference, shares_vocabulary
from rsd_engine.steps.vocabulary import Vocabulary, read_vocabulary
from rsd_kernels.state.enums import Role

logger = logging.getLogger("rsd_engine")

T = TypeVar("T")


@dataclass(frozen=True)
class OpenModel:
    """A checkpoint of which all but the weights was read."""

    checkpoint: Checkpoint
    config: ModelConfig
    tokenizer: Any
    vocabulary: Vocabulary
    stop_ids: frozenset[int]  # they end its texts; of a PRM none
    family: RewardFamily | None = None  # of a PRM
    merged: bool = False  # a PRM on the target's decoder


@dataclass(frozen=True)
class WriterModel:
    """A draft or target model with what belongs to it."""

    loaded: LanguageModel | None  # None: it is on a server
    tokenizer: Any
    vocabulary: Vocabulary
    generation_config: dict[str, Any]
    stop_ids: frozenset[int]  # that end a text

    @property
    def model(self) -> LanguageModel:
        """Of a writer that is not on a server."""
        assert self.loaded is not None
        return self.loaded

    @property
    def num_ids(self) -> int:
        """Ids that have a spelling and, if it is not on a server, a row."""
        known = self.vocabulary.num_tokens
        return min(known, self.loaded.config.vocab_size) if self.loaded else known


@dataclass(frozen=True)
class PrmModel:
    """A process reward model with what belongs to it."""

    loaded: RewardModel | None  # None: it is on a server
    family: RewardFamily
    format: PrmFormat
    # Its own, where the writers share it and it reads steps as they are tokenised, so that the
    # device can write its tokens; None: the host does, by way of text.
    shared_vocabulary: Vocabulary | None
    kv: Role = Role.PRM  # whose K/V it uses

    @property
    def model(self) -> RewardModel:
        """Of a PRM that is not on a server."""
        assert self.loaded is not None
        return self.loaded


@dataclass(frozen=True)
class ModelSet:
    """What an engine runs: all three roles, two and a scorer, or one writer alone.

    Or draft and target without what scores steps, for guesses alone.
    """

    writers: dict[Role, WriterModel]
    prm: PrmModel | None
    scorer: Scorer | None = None  # given in place of a PRM; one with a head is `prm` as well
    separate: bool = False  # draft and target have vocabularies of their own

    @property
    def main(self) -> WriterModel:
        """The writer whose tokenizer, chat template and sampling defaults count."""
        return self.writers.get(Role.TARGET) or self.writers[Role.DRAFT]

    @property
    def modes(self) -> tuple[str, ...]:
        """What a request may ask for; the first is the default."""
        if self.prm or self.scorer:
            return ("rsd", "target", "draft")
        return tuple(_name(role) for role in (Role.TARGET, Role.DRAFT) if role in self.writers)

    @property
    def num_ids(self) -> int:
        """Of `main`."""
        return self.num_ids_of(self.main)

    def num_ids_of(self, writer: WriterModel) -> int:
        """Ids below this one have a row and a spelling in every writer that shares them."""
        return min(peer.num_ids for peer in self.peers(writer))

    @property
    def models(self) -> dict[Role, LanguageModel | RewardModel]:
        """Those that are not on servers."""
        found: dict[Role, LanguageModel | RewardModel] = {
            role: writer.loaded for role, writer in self.writers.items() if writer.loaded
        }
        if self.prm and self.prm.loaded:
            found[Role.PRM] = self.prm.loaded
        return found

    @property
    def kv_shapes(self) -> dict[Role, KVShape]:
        return {role: m.config.kv_shape(m.dtype) for role, m in self.models.items()}

    @property
    def num_parameters(self) -> dict[Role, int]:
        """Of each role; 0 of one on a server, which does not say."""
        found = dict.fromkeys([*self.writers, *([Role.PRM] if self.prm else [])], 0)
        return found | {role: model.num_parameters for role, model in self.models.items()}

    @property
    def eos_ids(self) -> frozenset[int]:
        """Of `main`."""
        return self.eos_ids_of(self.main)

    def eos_ids_of(self, writer: WriterModel) -> frozenset[int]:
        """End-of-text ids: all that a writer of this vocabulary names and that it can write."""
        named = {i for peer in self.peers(writer) for i in peer.stop_ids}
        return frozenset(i for i in named if i < self.num_ids_of(writer))

    def of_vocabularies(self, make: Callable[[WriterModel], T]) -> dict[Role, T]:
        """For each writer what `make` gives for its vocabulary, the same where they share it."""
        if not self.separate:
            return dict.fromkeys(self.writers, make(self.main))
        return {role: make(writer) for role, writer in self.writers.items()}

    def peers(self, writer: WriterModel) -> list[WriterModel]:
        """The writers of its vocabulary."""
        return [writer] if self.separate else list(self.writers.values())


def open_models(
    draft: ModelSource | None,
    target: ModelSource | None,
    prm: ModelSource | None,
    *,
    options: OpenOptions,
    prm_options: PrmOptions,
    device: torch.device,
    scored: bool = False,
    guesses: bool = False,
) -> dict[Role, OpenModel]:
    """Reads configs and tokenizers of the models that are here; `scored`: with a scorer.

    A checkpoint that is both draft and target is opened once: both roles get the same object.

    Args:
        draft, target, prm: where the models are; see `ModelSource`.
        options: how they are opened.
        prm_options: how the PRM is fed.
        device: where they will run.
        scored: whether a scorer stands in place of the PRM.
        guesses: whether the draft may have nothing to do but to guess the target's tokens.

    Raises:
        ValueError: the models make no engine together, or a checkpoint is bad.
    """
    given = {Role.DRAFT: draft, Role.TARGET: target, Role.PRM: prm}
    sources = {role: source for role, source in given.items() if source is not None}
    check_roles(set(sources), scored=scored, guesses=guesses)
    sources = {r: source for r, source in sources.items() if not isinstance(source, RemoteModel)}
    options.check(set(map(_name, sources)))
    if prm is None:
        prm_options.check_not_given()
    opened: dict[Role, OpenModel] = {}
    for role, source in sources.items():
        is_same = role == Role.TARGET and is_same_source(draft, target)
        if is_same and options.alike(Role.DRAFT, Role.TARGET):
            opened[role] = opened[Role.DRAFT]
        else:
            opened[role] = _read(role, options.open(_name(role), source, device), prm_options)
    alone = prm is None and not scored and len(opened) > 1
    if alone and (difference := difference_of_writers(opened)):
        raise ValueError(
            f"guesses need a draft and a target of one tokenizer, and these differ ({difference}); "
            "give another draft, or the target alone"
        )
    if Role.PRM in opened and Role.TARGET in opened:
        alike = options.alike(Role.TARGET, Role.PRM)
        opened[Role.PRM] = _merged(opened[Role.TARGET], opened[Role.PRM], alike=alike)
    return opened


def memory_of(
    opened: Mapping[Role, OpenModel], dtype: str | torch.dtype, device: torch.device
) -> dict[Role, ModelMemory]:
    """What decides how much memory the models take; roles with the same model get the same object.

    Raises:
        ValueError: `dtype` is not supported, or weights are missing.
    """
    found: dict[Role, ModelMemory] = {}
    for role, model in opened.items():
        same = next((memory for other, memory in found.items() if opened[other] is model), None)
        same = found[Role.TARGET] if model.merged else same
        with naming_model(_name(role)):
            found[role] = same or ModelMemory(
                model.config, weight_form(model.checkpoint, model.config, dtype, device)
            )
    return found


def load_models(
    opened: Mapping[Role, OpenModel],
    memory: Mapping[Role, ModelMemory],
    *,
    device: torch.device,
    max_rows: int,
    max_positions: Mapping[Role, int],
) -> ModelSet:
    """Reads the weights of models from `open_models`; roles with the same model share them.

    Args:
        opened: the models.
        memory: their dtypes and sizes, see `memory_of`.
        device: of the weights.
        max_rows: most rows of a pass.
        max_positions: length of each role's rope tables.

    Raises:
        ValueError: the weights are bad.
        MemoryError: they do not fit on the device.
    """
    writers: dict[Role, WriterModel] = {}
    prm = None
    for role, model in opened.items():
        same = next((writer for other, writer in writers.items() if opened[other] is model), None)
        if same is not None:
            logger.info("%s: the same model as the draft, with the same weights", _name(role))
            writers[role] = same
            continue
        options: dict[str, Any] = {
            "dtype": memory[role].dtype,
            "device": device,
            "max_rows": max_rows,
            "max_positions": _longest(role, opened, max_positions),
        }
        advice = "take a dtype of fewer bytes, a smaller model or another device"
        what, size = f"{_name(role)}: weights of {model.checkpoint.source}", memory[role].weights
        with naming_model(_name(role)), told_when_full(what, size, device, advice):
            if role == Role.PRM:
                prm = _load_prm(model, writers.get(Role.TARGET) or writers[Role.DRAFT], options)
            else:
                writers[role] = _load_writer(role, model, options)
    models = ModelSet(writers, prm)
    if prm is not None and Role.TARGET in writers:
        models = replace(models, separate=differ(writers[Role.DRAFT], writers[Role.TARGET]))
    for writer in models.writers.values() if models.separate else [models.main]:
        _say_stop_ids(models, writer)
    return models


def _name(role: Role) -> str:
    return role.name.lower()


def _read(role: Role, checkpoint: Checkpoint, prm_options: PrmOptions) -> OpenModel:
    with naming_model(_name(role)):
        family = prm_options.family_of(checkpoint) if role == Role.PRM else None
        config = (
            read_reward_config(checkpoint, family) if family else read_language_config(checkpoint)
        )
        tokenizer = load_tokenizer(checkpoint)
        stop_ids = frozenset[int]() if family else read_stop_ids(checkpoint, tokenizer)
        vocabulary = read_vocabulary(tokenizer)
        return OpenModel(checkpoint, config, tokenizer, vocabulary, stop_ids, family)


def _merged(target: OpenModel, prm: OpenModel, *, alike: bool) -> OpenModel:
    """The PRM, as one on the target's decoder if it is; `alike`: both are opened alike."""
    checkpoints = (target.checkpoint, prm.checkpoint)
    return replace(prm, merged=alike and is_merged(*checkpoints, target.config, prm.config))


def _longest(
    role: Role, opened: Mapping[Role, OpenModel], max_positions: Mapping[Role, int]
) -> int:
    """Positions of a model's rope tables: those of a merged PRM count for the target too."""
    prm = opened.get(Role.PRM)
    shares = prm is not None and prm.merged and opened[role] is opened[Role.TARGET]
    return max(max_positions[role], max_positions[Role.PRM] if shares else 0)


def _load_writer(role: Role, model: OpenModel, options: dict[str, Any]) -> WriterModel:
    loaded = load_language_model(model.checkpoint, **options)
    _say(role, model.checkpoint, loaded)
    generation_config = model.checkpoint.generation_config() or {}
    return WriterModel(loaded, model.tokenizer, model.vocabulary, generation_config, model.stop_ids)


def _load_prm(model: OpenModel, writer: WriterModel, options: dict[str, Any]) -> PrmModel:
    family = model.family
    assert family is not None
    if model.merged:
        logger.info("prm: the target's weights, with a head of its own")
        options["decoder"] = writer.model.decoder
    loaded = load_reward_model(model.checkpoint, **options, family=family)
    _say(Role.PRM, model.checkpoint, loaded)
    form = family.format(model.tokenizer)
    is_shared = form.encode_step is None and shares_vocabulary(writer.vocabulary, model.vocabulary)
    return PrmModel(loaded, family, form, model.vocabulary if is_shared else None)


def difference_of_writers(opened: Mapping[Role, OpenModel]) -> str | None:
    """The first id that means one thing to the draft and another to the target, in words."""
    if Role.TARGET not in opened:  # it is on a server
        return None
    return _difference(opened[Role.DRAFT], opened[Role.TARGET])


def _difference(draft: OpenModel | WriterModel, target: OpenModel | WriterModel) -> str | None:
    names = ("the draft", "the target")
    difference = first_special_difference(draft.vocabulary, target.vocabulary, names)
    return difference or first_difference(draft.vocabulary, target.vocabulary, names)


def differ(draft: WriterModel, target: WriterModel) -> bool:
    """Whether draft and target have vocabularies of their own; the log says so."""
    difference = _difference(draft, target)
    if difference:
        logger.info(
            "draft and target have different tokenizers: steps go from one to the other through "
            "text, on the host (%s)",
            difference,
        )
    return difference is not None


def _say(role: Role, checkpoint: Checkpoint, model: LanguageModel | RewardModel) -> None:
    logger.info(
        "%s: %s, %s, %.1f M parameters, %.1f MB of weights in %s",
        _name(role), checkpoint.source, model.config.architecture, model.num_parameters / 1e6,
        model.weight_bytes / 1e6, model.decoder.weights.held_in,
    )  # fmt: skip


def _say_stop_ids(models: ModelSet, writer: WriterModel) -> None:
    named = {i for peer in models.peers(writer) for i in peer.stop_ids}
    tokenizer, eos_ids = writer.tokenizer, models.eos_ids_of(writer)
    ends = [f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in sorted(eos_ids)]
    logger.info("end of text: %s", ", ".join(ends) or "no ids; outputs end by other limits")
    beyond = sorted(named - eos_ids)
    if beyond:
        logger.warning(
            "end of text: ids %s are ignored, ids of the models end at %d",
            beyond,
            models.num_ids_of(writer) - 1,
        )
