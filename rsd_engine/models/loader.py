"""From a folder, hub id or GGUF file to a model that is ready to run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.open import Checkpoint, open_checkpoint
from rsd_engine.models.config import DTYPES, ModelConfig
from rsd_engine.models.convert import as_computed
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.registry import decoder_families, reward_families
from rsd_engine.models.weights import DecoderWeights, fill
from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.linear.weight import LinearWeight


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
            Weights are held in it too, except bf16 matrices that the CPU library multiplies in
            fp32 as they are stored, with the same results.
        device: of the weights.
        max_rows: most rows of a pass.
        max_positions: length of the rope tables; by default what the config allows.

    Raises:
        ValueError: there is no such model, it is not a supported language model, or its weights do
            not match its config.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, revision)
    config = read_language_config(checkpoint)
    weights = _allocate(checkpoint, config, dtype, torch.device(device))
    places, ignored = weights.places(config), frozenset({"lm_head.weight"})
    lm_head = LinearWeight(weights.embedding)
    if not config.tie_word_embeddings:
        lm_head = LinearWeight(torch.empty_like(weights.embedding))
        places["lm_head.weight"] = lm_head.matrix
    fill(places, _tensors(checkpoint, config), source=checkpoint.source, ignored=ignored)
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
) -> RewardModel:
    """Loads a process reward model; arguments and errors as in `load_language_model`."""
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, revision)
    config = read_reward_config(checkpoint)
    weights = _allocate(checkpoint, config, dtype, torch.device(device))
    family = reward_families()[config.architecture]
    head = family.allocate_head(weights.final_norm, config.rms_norm_eps)
    fill(
        weights.places(config) | family.places(head),
        _tensors(checkpoint, config),
        source=checkpoint.source,
        ignored=frozenset({"lm_head.weight"}),
    )
    decoder = Decoder(config, weights, max_rows=max_rows, max_positions=max_positions)
    return RewardModel(decoder, head)


def read_language_config(checkpoint: Checkpoint) -> ModelConfig:
    """The config of a draft or target model.

    Raises:
        ValueError: it is not that of a supported language model.
    """
    return _read_config(checkpoint, "a language model", decoder_families())


def read_reward_config(checkpoint: Checkpoint) -> ModelConfig:
    """The config of a process reward model.

    Raises:
        ValueError: it is not that of a supported reward model.
    """
    return _read_config(checkpoint, "a reward model", reward_families())


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


def weight_dtypes(
    checkpoint: Checkpoint, config: ModelConfig, dtype: str | torch.dtype, device: torch.device
) -> tuple[torch.dtype, torch.dtype]:
    """The dtype that a model computes in, and the one that its matrices are held in.

    They differ where the CPU library multiplies bf16 matrices in fp32 as they are stored.

    Raises:
        ValueError: see `check_dtype`; or the checkpoint's weights cannot be read.
    """
    dtype = resolve_dtype(dtype, config, device)
    in_fp32_by_library = device.type == "cpu" and dtype == torch.float32 and cpu_ops.available()
    keep = in_fp32_by_library and checkpoint.has_bfloat16_matrices()
    return dtype, torch.bfloat16 if keep else dtype


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


def _tensors(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    return as_computed(checkpoint.tensors(), config, source=checkpoint.source)


def _allocate(
    checkpoint: Checkpoint, config: ModelConfig, dtype: str | torch.dtype, device: torch.device
) -> DecoderWeights:
    dtype, matrix_dtype = weight_dtypes(checkpoint, config, dtype, device)
    return DecoderWeights.allocate(config, dtype, device, matrix_dtype)
