"""The sizes of well-known checkpoints, from their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsd_engine.models.decoders.llama import LLAMA
from rsd_engine.models.decoders.qwen import QWEN2
from rsd_engine.models.reward import qwen_math_prm, skywork

_QWEN_CONTEXT = 32768


def _qwen2(
    hidden: int, inter: int, layers: int, heads: int, kv_heads: int, *, architecture: str = ""
) -> dict[str, Any]:
    is_small = hidden <= 2048
    return {
        "architectures": [architecture or QWEN2.architecture],
        "vocab_size": 151936 if is_small else 152064,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": _QWEN_CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": is_small,
        "torch_dtype": "bfloat16",
    }


def _llama3(
    hidden: int, inter: int, layers: int, heads: int, *, head_dim: int, tied: bool
) -> dict[str, Any]:
    return {
        "architectures": [LLAMA.architecture],
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


# Sizes: config.json of Qwen/Qwen2.5-*-Instruct (the Math models of 1.5B, 7B and 72B have the same),
# meta-llama/Llama-3.2-1B-Instruct and Llama-3.1-8B-Instruct, Skywork/Skywork-o1-Open-PRM-Qwen-2.5-*
# and Qwen/Qwen2.5-Math-PRM-*.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2),
    "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4),
    "qwen2.5-14b": _qwen2(5120, 13824, 48, 40, 8),
    "qwen2.5-32b": _qwen2(5120, 27648, 64, 40, 8),
    "qwen2.5-72b": _qwen2(8192, 29568, 80, 64, 8),
    "llama-3.2-1b": _llama3(2048, 8192, 16, 32, head_dim=64, tied=True),
    "llama-3.1-8b": _llama3(4096, 14336, 32, 32, head_dim=128, tied=False),
    "skywork-prm-1.5b": _qwen2(1536, 8960, 28, 12, 2, architecture=skywork.ARCHITECTURE),
    "skywork-prm-7b": _qwen2(3584, 18944, 28, 28, 4, architecture=skywork.ARCHITECTURE),
    "qwen2.5-math-prm-7b": _qwen2(3584, 18944, 28, 28, 4, architecture=qwen_math_prm.ARCHITECTURE),
    "qwen2.5-math-prm-72b": _qwen2(8192, 29568, 80, 64, 8, architecture=qwen_math_prm.ARCHITECTURE),
}
