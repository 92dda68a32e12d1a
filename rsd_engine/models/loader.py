"""From a folder, hub id or GGUF file to a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rsd_engine.models.allocation import LM_HEAD, Allocation, head_places
from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.checkpoints.open import Checkpoint, load_tokenizer, open_checkpoint
from rsd_engine.models.config import DTYPES, ModelConfig
from rsd_engine.models.convert import as_computed
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.filling import choose, fill, log_expansion
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.names import num_layers, with_plain_names
from rsd_engine.models.registry import (
    decoder_families,
    find_reward_family,
    reward_architectures,
    reward_families,
)
from rsd_engine.models.reward.family import RewardFamily
from rsd_engine.models.weight_form import WeightForm
from rsd_engine.models.weights import EMBEDDING, DecoderWeights, HeadWeight
from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.reward.heads import RewardHead

_LOG = logging.getLogger(__name__)

Head = TypeVar("Head", HeadWeight, RewardHead)
Parts = tuple[DecoderWeights, Head, dict[str, Tensor]]
"""Unfilled weights, the head, and name of a tensor in the checkpoint -> where it goes."""


def load_language_model(
    source: str | Path | Checkpoint,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    max_rows: int,
    max_positions: int | None = None,
) -> LanguageModel:
    """Loads a draft or target model.

    Args:
        source: folder, `.gguf` file, hub id or an open checkpoint.
        revision: branch, tag or commit of a hub id.
        dtype: to compute in: "auto" (see `resolve_dtype`), a name in `DTYPES` or a torch dtype.
            Weights are held in it too, except matrices that are multiplied as they are stored: on
            a CPU in fp32 those of bf16, fp16, and the blocks of a GGUF file, with the same results;
            on a GPU those of layers in GPTQ, AWQ and FP8.
        device: of the weights.
        max_rows: most rows of a pass.
        max_positions: length of the rope tables; by default what the config allows.

    Raises:
        ValueError: there is no such model, it is not a supported language model, or its weights do
            not match its config.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, revision)
    config = read_language_config(checkpoint)
    stored = with_plain_names(checkpoint.tensors(), checkpoint.source)
    config, stored = _settle_embeddings(config, stored, checkpoint.source)
    stored = as_computed(stored, config, checkpoint.source)

    def allocate(room: Allocation) -> Parts[HeadWeight]:
        weights = room.decoder(config)
        lm_head = room.lm_head(config, weights)
        return weights, lm_head, weights.places(config) | head_places(config, lm_head)

    form = weight_form(checkpoint, config, dtype, torch.device(device))
    chosen = _choose(allocate, stored, config, checkpoint.source, ignored=("v_head.", "score."))
    weights, lm_head = _filled(allocate, form, torch.device(device), chosen, checkpoint.source)
    decoder = Decoder(config, weights, max_rows=max_rows, max_positions=max_positions)
    return LanguageModel(decoder, lm_head)


def load_reward_model(
    source: str | Path | Checkpoint,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    max_rows: int,
    max_positions: int | None = None,
    family: RewardFamily | None = None,
    decoder: Decoder | None = None,
) -> RewardModel:
    """Loads a process reward model.

    Args:
        source: as in `load_language_model`, like all that follow but the last two.
        revision: see there.
        dtype: see there.
        device: see there.
        max_rows: see there.
        max_positions: see there.
        family: what the model is; by default what its checkpoint tells, see `reward_family_of`.
        decoder: of the same weights; None loads one.

    Raises:
        ValueError: as `load_language_model`, or the tokenizer lacks a token that the head is made
            of.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, revision)
    kind = family or reward_family_of(checkpoint)
    config, raw = read_reward_config(checkpoint, kind), checkpoint.config()
    stored = with_plain_names(checkpoint.tensors(), checkpoint.source)
    stored = as_computed(stored, config, checkpoint.source)
    if kind.reads_lm_head and not config.tie_word_embeddings and LM_HEAD not in stored:
        raise ValueError(
            f"model {checkpoint.source!r} lacks {LM_HEAD}, of which its head is made; if it is "
            "the embedding, set tie_word_embeddings to true in config.json"
        )
    stored = dict(kind.prepare(stored, partial(load_tokenizer, checkpoint)))

    def allocate(room: Allocation) -> Parts[RewardHead]:
        weights = room.decoder(config)
        head = kind.allocate_head(weights.final_norm, config.rms_norm_eps, raw)
        return weights, head, weights.places(config) | kind.places(head)

    form = weight_form(checkpoint, config, dtype, torch.device(device))
    chosen = _choose(allocate, stored, config, checkpoint.source, ignored=(LM_HEAD,))
    if decoder is not None:
        head = kind.allocate_head(decoder.weights.final_norm, config.rms_norm_eps, raw)
        own = kind.places(head)
        fill(own, {name: chosen[name] for name in own})
        return RewardModel(decoder, head)
    weights, head = _filled(allocate, form, torch.device(device), chosen, checkpoint.source)
    decoder = Decoder(config, weights, max_rows=max_rows, max_positions=max_positions)
    return RewardModel(decoder, head)


def read_language_config(checkpoint: Checkpoint) -> ModelConfig:
    """The config of a draft or target model.

    Raises:
        ValueError: it is not that of a supported language model.
    """
    return _read_config(checkpoint, "a language model", decoder_families())


def reward_family_of(checkpoint: Checkpoint) -> RewardFamily:
    """The family of a process reward model, as its checkpoint tells it.

    Raises:
        ValueError: its config is not that of a supported reward model, or does not tell.
    """
    architecture = _read_config(checkpoint, "a reward model", reward_architectures()).architecture
    found = find_reward_family(architecture, checkpoint)
    if found is None:
        fitting = [n for n, f in reward_families().items() if architecture in f.architectures]
        telling = [n for n in reward_architectures() if find_reward_family(n)]
        raise ValueError(
            f"model {checkpoint.source!r} is a {architecture}, which does not tell what reward "
            f"model it is; name it with prm_format, one of {', '.join(sorted(fitting))}, or give "
            f"one of {', '.join(telling)}"
        )
    return found


def read_reward_config(checkpoint: Checkpoint, family: RewardFamily | None = None) -> ModelConfig:
    """The config of a process reward model.

    Args:
        checkpoint: of the model.
        family: what it is; by default what the checkpoint tells.

    Raises:
        ValueError: it is not that of a supported reward model, or of the family.
    """
    kind = family or reward_family_of(checkpoint)
    config = _read_config(checkpoint, f"one of {kind.name}", kind.architectures)
    # A head of its own reads the norm's output, without the factor that logits take.
    scale = config.logits_scale if kind.reads_lm_head else 1.0
    return replace(config, is_reward_model=True, logits_scale=scale)


def check_dtype(dtype: str | torch.dtype) -> None:
    """Raises ValueError unless `dtype` is "auto", one of the names in `DTYPES` or such a dtype."""
    if dtype not in ("auto", *DTYPES, *DTYPES.values()):
        raise ValueError(f"dtype={dtype!r} is not supported; auto or one of {', '.join(DTYPES)}")


def resolve_dtype(
    dtype: str | torch.dtype, config: ModelConfig, device: torch.device
) -> torch.dtype:
    """The dtype that a model computes in.

    "auto" is the checkpoint's own on a GPU and fp32 on a CPU: most CPUs have no bf16 arithmetic,
    and emulating it makes a prompt several times slower than fp32 does.

    Raises:
        ValueError: see `check_dtype`.
    """
    check_dtype(dtype)
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else config.dtype
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def weight_form(
    checkpoint: Checkpoint, config: ModelConfig, dtype: str | torch.dtype, device: torch.device
) -> WeightForm:
    """What a model computes in, and what its matrices are held in.

    The CPU library multiplies in fp32 what is stored in fewer bits, with the results of fp32. On a
    GPU matrices of a few bits that share scales in groups of inputs stay as they are.

    Raises:
        ValueError: see `check_dtype`; or the checkpoint's weights cannot be read.
    """
    dtype = resolve_dtype(dtype, config, device)
    if device.type == "cuda":
        return WeightForm.in_groups(dtype, checkpoint.tensors())
    if device.type != "cpu" or dtype != torch.float32 or not cpu_ops.available():
        return WeightForm.plain(dtype)
    stored = checkpoint.tensors()
    matrices = [tensor for tensor in stored.values() if tensor.is_matrix]
    kinds = {tensor.dtype for tensor in matrices}
    if any(tensor.stored for tensor in matrices) or kinds in ({torch.bfloat16}, {torch.float16}):
        return WeightForm.as_stored(dtype, stored)
    return WeightForm.plain(dtype)


def _read_config(checkpoint: Checkpoint, kind: str, allowed: Collection[str]) -> ModelConfig:
    try:
        config = ModelConfig.from_dict(checkpoint.config())
    except ValueError as error:
        raise ValueError(f"model {checkpoint.source!r}: {error}") from error
    if config.architecture not in allowed:
        raise ValueError(
            f"model {checkpoint.source!r} is a {config.architecture}, not {kind}; "
            f"one of {', '.join(allowed)}"
        )
    return config


def _choose(
    allocate: Callable[[Allocation], Parts[Head]],
    stored: Mapping[str, StoredTensor],
    config: ModelConfig,
    source: str,
    *,
    ignored: tuple[str, ...],
) -> dict[str, StoredTensor]:
    """The tensors to read, checked before any memory is taken."""
    found = num_layers(stored)
    if found != config.num_layers:
        raise ValueError(
            f"model {source!r}: the config says num_hidden_layers={config.num_layers}, and the "
            f"weights hold {found} layers: give a config and weights that belong together"
        )
    try:
        _, _, wanted = allocate(Allocation.on_meta())
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(
            f"model {source!r}: the sizes in its config are too large for any tensor"
        ) from error
    return choose(stored, wanted, source=source, ignored=ignored)


def _filled(
    allocate: Callable[[Allocation], Parts[Head]],
    form: WeightForm,
    device: torch.device,
    chosen: Mapping[str, StoredTensor],
    source: str,
) -> tuple[DecoderWeights, Head]:
    """The weights and the head, with everything read."""
    weights, head, places = allocate(Allocation(form, device, chosen))
    read = {name: tensor for name, tensor in chosen.items() if name in places}
    log_expansion(source, read, places)
    fill(places, read)
    return weights, head


def _settle_embeddings(
    config: ModelConfig, stored: dict[str, StoredTensor], source: str
) -> tuple[ModelConfig, dict[str, StoredTensor]]:
    """Whether embedding and LM head are one tensor, as transformers decides it.

    The config's switch counts unless the files hold two that differ: then they are two. Of a tied
    model the files may hold either.
    """
    if not config.tie_word_embeddings or LM_HEAD not in stored:
        return config, stored
    head = stored[LM_HEAD]
    others = {name: tensor for name, tensor in stored.items() if name != LM_HEAD}
    if EMBEDDING not in stored:
        return config, others | {EMBEDDING: head}
    if _same(head, stored[EMBEDDING]):
        return config, others
    _LOG.warning(
        "%s: its config ties lm_head to the embedding, but its files hold two that differ; both "
        "are used as stored", source,
    )  # fmt: skip
    return replace(config, tie_word_embeddings=False), stored


def _same(a: StoredTensor, b: StoredTensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.read(), b.read())
