"""What one checkpoint is: from its config, tokenizer and file names, without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.checkpoints.open import load_tokenizer, open_checkpoint
from rsd_engine.models.checkpoints.stop_ids import read_stop_ids
from rsd_engine.models.checkpoints.storage import Storage, find_storage
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.registry import decoder_families, find_reward_family, reward_architectures
from rsd_engine.models.reward.family import PrmFormat, RewardFamily
from rsd_engine.models.rope_config import RopeConfig
from rsd_engine.steps.vocabulary import Vocabulary, read_vocabulary

_SPECIAL = ("bos", "eos", "pad", "unk")
QUESTION = "{question}"  # stands for the question in a PRM's prompt


@dataclass(frozen=True)
class NamedId:
    """An id and how its token is written; "" if the tokenizer has no such token."""

    id: int
    text: str

    def __str__(self) -> str:
        return f"{self.id} {self.text!r}" if self.text else f"{self.id} (no such token)"


@dataclass(frozen=True)
class PrmFacts:
    """How a process reward model is fed.

    Attributes:
        family: as its authors call it.
        prompt: its context before the first step, with `QUESTION` in place of the question.
        separator: the ids after every step; the reward is read at the last.
        head: what turns a hidden state into a reward.
        threshold: the reward from which a step is kept, where no policy is named.
        reward_range: the least and the greatest reward.
    """

    family: str
    prompt: str
    separator: tuple[NamedId, ...]
    head: str
    threshold: float
    reward_range: tuple[float, float]


@dataclass(frozen=True)
class ModelFacts:
    """One checkpoint.

    Attributes:
        is_local: false for a hub id, whose weights may still be on the hub.
        family: of its decoder, such as "Llama" or "Qwen2".
        stop_tokens: ids that end a text.
        special_tokens: by "bos", "eos", "pad" and "unk", those that the tokenizer has.
        prm: None for a writer.
    """

    checkpoint: Checkpoint = field(repr=False)
    is_local: bool
    storage: Storage
    config: ModelConfig
    family: str
    vocabulary: Vocabulary = field(repr=False)
    stop_tokens: tuple[NamedId, ...]
    special_tokens: Mapping[str, NamedId]
    has_chat_template: bool
    prm: PrmFacts | None

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """How its layers rotate q and k, each way once."""
        return tuple(dict.fromkeys(self.config.ropes))

    @property
    def source(self) -> str:
        """What the user called it."""
        return self.checkpoint.source


def read_facts(
    source: str | Path, revision: str | None = None, prm_options: PrmOptions | None = None
) -> ModelFacts:
    """Reads what a checkpoint is; of a hub id only the small files are downloaded.

    Args:
        source: folder, GGUF file or hub id.
        revision: branch, tag or commit of a hub id.
        prm_options: how it is fed, if it is meant as a PRM and need not tell it itself.

    Raises:
        ValueError: there is no such model, the engine does not run its kind, or its config or
            tokenizer cannot be used.
        ImportError: a package that reads its files is missing.
    """
    local = Path(source).expanduser().exists()
    checkpoint = open_checkpoint(source, None if local else revision, weights=False)
    try:
        return _read(checkpoint, local, prm_options)
    except (ValueError, OSError) as error:
        message = str(error)
        if checkpoint.source in message:
            raise
        raise ValueError(f"model {checkpoint.source!r}: {message}") from error


def _read(checkpoint: Checkpoint, is_local: bool, prm_options: PrmOptions | None) -> ModelFacts:
    config = ModelConfig.from_dict(checkpoint.config())
    tokenizer = load_tokenizer(checkpoint)
    vocabulary = read_vocabulary(tokenizer)
    reward = (
        prm_options.family_of(checkpoint)
        if prm_options
        else find_reward_family(config.architecture, checkpoint)
    )
    return ModelFacts(
        checkpoint=checkpoint,
        is_local=is_local,
        storage=find_storage(checkpoint),
        config=replace(config, is_reward_model=reward is not None),
        family=_family(config.architecture),
        vocabulary=vocabulary,
        stop_tokens=_named(sorted(read_stop_ids(checkpoint, tokenizer)), vocabulary),
        special_tokens=_special_tokens(tokenizer, vocabulary),
        has_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        prm=None if reward is None else _prm_facts(reward, tokenizer, vocabulary),
    )


def _family(architecture: str) -> str:
    decoder = (decoder_families() | reward_architectures())[architecture]
    return decoder.architecture.removesuffix("ForCausalLM")


def _special_tokens(tokenizer: Any, vocabulary: Vocabulary) -> dict[str, NamedId]:
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    return {name: _name(i, vocabulary) for name, i in ids.items() if i is not None}


def _prm_facts(family: RewardFamily, tokenizer: Any, vocabulary: Vocabulary) -> PrmFacts:
    form = family.format(tokenizer)
    return PrmFacts(
        family=family.name,
        prompt=_prompt(form),
        separator=_named(form.separator_ids, vocabulary),
        head=family.head.__name__,
        threshold=family.threshold,
        reward_range=family.reward_range,
    )


def _prompt(form: PrmFormat) -> str:
    decode = form.encoder.decode
    before, after = (
        decode(list(ids), skip_special_tokens=False) for ids in (form.before, form.after)
    )
    return f"{before}{form.prefix}{QUESTION}{form.suffix}{after}"


def _named(ids: Iterable[int], vocabulary: Vocabulary) -> tuple[NamedId, ...]:
    return tuple(_name(i, vocabulary) for i in ids)


def _name(i: int, vocabulary: Vocabulary) -> NamedId:
    data = vocabulary.token_bytes[i] if 0 <= i < vocabulary.num_tokens else b""
    return NamedId(i, vocabulary.special_text.get(i) or data.decode("utf-8", errors="replace"))
