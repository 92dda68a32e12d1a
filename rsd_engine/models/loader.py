"""From a folder, hub id or GGUF file to a model that is ready to run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.open import Checkpoint, open_checkpoint
from rsd_engine.models.config import DTYPES, LANGUAGE_MODELS, ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.reward_heads import REWARD_HEADS
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
    arena: Tensor | None = None,  # [bytes] uint8
) -> LanguageModel:
    """Loads a draft or target model.

    Args:
        source: folder, `.gguf` file, hub id or an open checkpoint.
        revision: branch, tag or commit of a hub id.
        dtype: in which is computed: "auto" (see `resolve_dtype`), a name in `DTYPES` or a torch
            dtype. Weights are held in it too, but for bf16 matrices that the CPU library reads:
            it multiplies them in fp32 as they are stored, with the same results.
        device: where the weights go.
        max_rows: most rows a pass may bring.
        max_positions: longest row the rope tables serve; by default the model's context.
        arena: byte buffer for the activations, to be shared with other models.

    Raises:
        ValueError: if there is no such model, it is not a supported language model, or its weights
            do not match its config.
    """
    checkpoint = _opened(source, revision)
    config = _config(checkpoint)
    if config.architecture not in LANGUAGE_MODELS:
        raise ValueError(
            f"model {checkpoint.source!r} is a {config.architecture}, not a language model; "
            f"one of {', '.join(LANGUAGE_MODELS)}"
        )
    device = torch.device(device)
    dtype = resolve_dtype(dtype, config, device)
    weights = _allocate(checkpoint, config, dtype, device)
    places, ignored = weights.places(config), frozenset({"lm_head.weight"})
    lm_head = LinearWeight(weights.embedding)
    if not config.tie_word_embeddings:
        lm_head = LinearWeight(torch.empty_like(weights.embedding))
        places["lm_head.weight"] = lm_head.matrix
    fill(places, checkpoint.tensors(), source=checkpoint.source, ignored=ignored)
    decoder = Decoder(config, weights, max_rows=max_rows, max_positions=max_positions, arena=arena)
    return LanguageModel(decoder, lm_head)


def load_reward_model(
    source: str | Path | Checkpoint,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    max_rows: int,
    max_positions: int | None = None,
    arena: Tensor | None = None,  # [bytes] uint8
) -> RewardModel:
    """Loads a process reward model; arguments and errors as in `load_language_model`."""
    checkpoint = _opened(source, revision)
    config = _config(checkpoint)
    head_type = REWARD_HEADS.get(config.architecture)
    if head_type is None:
        raise ValueError(
            f"model {checkpoint.source!r} is a {config.architecture}, which has no known reward "
            f"head; one of {', '.join(REWARD_HEADS)}"
        )
    device = torch.device(device)
    dtype = resolve_dtype(dtype, config, device)
    weights = _allocate(checkpoint, config, dtype, device)
    head = head_type.allocate(config, dtype, device)
    fill(
        weights.places(config) | head.places(),
        checkpoint.tensors(),
        source=checkpoint.source,
        ignored=frozenset({"lm_head.weight"}),
    )
    decoder = Decoder(config, weights, max_rows=max_rows, max_positions=max_positions, arena=arena)
    return RewardModel(decoder, head)


def check_dtype(dtype: str | torch.dtype) -> None:
    """Raises ValueError unless `dtype` is "auto", one of the names in `DTYPES` or such a dtype."""
    if dtype not in ("auto", *DTYPES, *DTYPES.values()):
        raise ValueError(f"dtype={dtype!r} is not supported; auto or one of {', '.join(DTYPES)}")


def resolve_dtype(
    dtype: str | torch.dtype, config: ModelConfig, device: torch.device
) -> torch.dtype:
    """The dtype in which a model computes.

    "auto" is the checkpoint's own on a GPU and fp32 on a CPU: most CPUs have no bf16 arithmetic,
    and emulating it makes a prompt several times slower than fp32 does.

    Raises:
        ValueError: see `check_dtype`.
    """
    check_dtype(dtype)
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else config.dtype
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def _allocate(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> DecoderWeights:
    in_fp32_by_library = device.type == "cpu" and dtype == torch.float32 and cpu_ops.available()
    keep = in_fp32_by_library and checkpoint.has_bfloat16_matrices()
    return DecoderWeights.allocate(config, dtype, device, torch.bfloat16 if keep else None)


def _opened(source: str | Path | Checkpoint, revision: str | None) -> Checkpoint:
    return source if isinstance(source, Checkpoint) else open_checkpoint(source, revision)


def _config(checkpoint: Checkpoint) -> ModelConfig:
    try:
        return ModelConfig.from_dict(checkpoint.config())
    except ValueError as error:
        raise ValueError(f"model {checkpoint.source!r}: {error}") from error
