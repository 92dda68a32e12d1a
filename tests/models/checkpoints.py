"""Tiny random checkpoints of every supported architecture, made with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
}

# The original length is shorter than what tests read, so that transformers takes the long factors.
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.2, 2.5, 4.0],
    "partial_rotary_factor": 0.75,
}
_GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 3.0,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 7, "num_key_value_heads": 1}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("Qwen2", {"rms_norm_eps": 1e-6}),
    "qwen2-sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": _YARN}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3-sliding": (
        "SmolLM3",
        {
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "granite": ("Granite", {**_GRANITE, "tie_word_embeddings": True}),
    "granite-bias": ("Granite", {**_GRANITE, "attention_bias": True, "mlp_bias": True}),
    "phi3": ("Phi3", {"sliding_window": 7, "num_key_value_heads": 4}),
    "phi4-mini-short": (
        "Phi3",
        {
            "rope_parameters": {**_LONGROPE, "factor": 4.0},
            "original_max_position_embeddings": 96,
            "tie_word_embeddings": True,
        },
    ),
    "phi4-mini-long": (
        "Phi3",
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 2},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2-bias": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 1}),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 6,
            "sliding_window_pattern": 3,
            "rope_parameters": _GEMMA3_ROPES,
        },
    ),
    "gemma3-untied": (
        "Gemma3",
        {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": False},
    ),
}
WHOLE = [name for name in ARCHITECTURES if not name.startswith(("olmo2", "gemma3"))]
"""Those whose layers the CPU library runs in one call."""


def make_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random fp32 model; norms and biases are random too, so that none can be left out."""
    family, options = ARCHITECTURES[name]
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    config = getattr(transformers, config_name)(
        **{**_SIZES, "attn_implementation": "eager", **options, **changes}
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name_, parameter in model.named_parameters():
            if "norm" in name_:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() == 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 0.15)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def file_behind(tensor: Tensor) -> str | None:
    """The mapped file in which a tensor's memory lies, on Linux."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, last = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in place.split("-"))
        if start <= tensor.data_ptr() < end:
            return last if last.startswith("/") else None
    return None


def edit_config(folder: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name in drop:
        config.pop(name, None)
    path.write_text(json.dumps(config | changes))


def to_old_spelling(folder: Path) -> None:
    """Rewrites config.json as transformers 4 wrote it."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["torch_dtype"] = config.pop("dtype")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
    (folder / "config.json").write_text(json.dumps(config))


class PrmHeads:
    """State dicts of the two reward heads, and their formulas applied by hand."""

    @staticmethod
    def value(hidden_size: int) -> dict[str, Tensor]:
        layer = nn.Linear(hidden_size, 1)
        return {f"v_head.summary.{k}": v.detach() for k, v in layer.state_dict().items()}

    @staticmethod
    def two_class(hidden_size: int) -> dict[str, Tensor]:
        inner, classes = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, 2)
        head = {f"score.0.{k}": v.detach() for k, v in inner.state_dict().items()}
        return head | {f"score.2.{k}": v.detach() for k, v in classes.state_dict().items()}

    @staticmethod
    def value_reward(hidden: Tensor, head: dict[str, Tensor]) -> Tensor:
        weight, bias = head["v_head.summary.weight"], head["v_head.summary.bias"]
        return torch.sigmoid(hidden @ weight[0] + bias[0])

    @staticmethod
    def two_class_reward(hidden: Tensor, head: dict[str, Tensor]) -> Tensor:
        inner = (hidden @ head["score.0.weight"].T + head["score.0.bias"]).clamp(min=0)
        return torch.softmax(inner @ head["score.2.weight"].T + head["score.2.bias"], -1)[..., 1]
