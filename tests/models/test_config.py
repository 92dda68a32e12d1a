"""What a config.json may say, in both spellings, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rsd_engine.memory.page_pool import KVShape
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.rope_config import RopeConfig
from tests.models.checkpoints import ARCHITECTURES, make_model, save, to_old_spelling

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "head_dim": 16}
GRANITE = {"architectures": ["GraniteForCausalLM"]}
PHI3 = {"architectures": ["Phi3ForCausalLM"]}
SMOLLM3 = {"architectures": ["SmolLM3ForCausalLM"]}
LONGROPE = {"rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(folder: Path) -> ModelConfig:
    return ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_saved_config_in_both_spellings(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    config = read(save(model, tmp_path))
    assert config.num_parameters == sum(p.numel() for p in model.parameters())
    assert config.tie_word_embeddings == model.config.tie_word_embeddings
    to_old_spelling(tmp_path)
    assert read(tmp_path) == config


def test_concrete_model() -> None:
    """Qwen2.5-Math-1.5B: 28,672 bytes of K and V a token in bf16, 1.54 billion weights."""
    config = ModelConfig.from_dict(
        {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 4096,
            "sliding_window": 4096,
            "use_sliding_window": False,
            "max_window_layers": 21,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "rope_theta": 10000,
            "rms_norm_eps": 1e-6,
        }
    )
    assert config.kv_shape(torch.bfloat16) == KVShape(28, 2, 128, torch.bfloat16)
    assert config.kv_shape(torch.bfloat16).bytes_per_token == 28672
    assert config.num_parameters == 1_543_714_304
    assert config.dtype == torch.bfloat16
    assert config.qkv_bias and not config.o_bias and not config.mlp_bias
    assert set(config.sliding_windows) == {None}


_LONGROPE48 = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


@pytest.mark.parametrize(
    ("changes", "num_parameters"),
    [
        pytest.param(
            {
                "architectures": ["Gemma3ForCausalLM"], "hidden_size": 1152,
                "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
                "num_key_value_heads": 1, "vocab_size": 262144, "sliding_window": 512,
                "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None,
            },
            999_885_952, id="Gemma 3 1B",
        ),
        pytest.param(
            {
                "architectures": ["SmolLM3ForCausalLM"], "hidden_size": 2048,
                "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
                "num_key_value_heads": 4, "vocab_size": 128256, "rope_theta": 5000000.0,
                "no_rope_layers": [1, 1, 1, 0] * 9, "layer_types": ["full_attention"] * 36,
            },
            3_075_098_624, id="SmolLM3-3B",
        ),
        pytest.param(
            {
                "architectures": ["Phi3ForCausalLM"], "hidden_size": 3072,
                "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
                "num_key_value_heads": 8, "vocab_size": 200064, "sliding_window": 262144,
                "partial_rotary_factor": 0.75, "rope_scaling": _LONGROPE48,
                "original_max_position_embeddings": 4096, "max_position_embeddings": 131072,
                "tie_word_embeddings": True,
            },
            3_836_021_760, id="Phi-4-mini",
        ),
        pytest.param(
            {
                "architectures": ["Olmo2ForCausalLM"], "hidden_size": 2048,
                "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16,
                "num_key_value_heads": 16, "vocab_size": 100352, "rope_theta": 500000,
                "tie_word_embeddings": False,
            },
            1_484_916_736, id="OLMo 2 1B",
        ),
    ],
)  # fmt: skip
def test_real_sizes(changes: dict[str, Any], num_parameters: int) -> None:
    """What the configs of releases say, and how many weights they have."""
    assert ModelConfig.from_dict(LLAMA | changes).num_parameters == num_parameters


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"]}, (4096,) * 4),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, (None,) * 4),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 9}, (9,) * 4),
        ({"sliding_window": 9}, (None,) * 4),
        ({"sliding_window": 9, "use_sliding_window": True}, (None,) * 4),
        (
            {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 9),
        ),
        ({"architectures": ["LlamaForCausalLM"], "sliding_window": 9}, (None,) * 4),
    ],
)
def test_sliding_windows(changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert ModelConfig.from_dict(QWEN2 | changes).sliding_windows == windows


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "llama3", **LLAMA3_ROPE},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "attention_factor": 1.3},
        {"rope_type": "yarn", "factor": 4.0, "truncate": False, "mscale": 0.7},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.1},
    ],
)
def test_rope_equals_transformers(scaling: dict[str, Any]) -> None:
    parameters = {"rope_theta": 1e6, "original_max_position_embeddings": 4096, **scaling}
    theirs = LlamaConfig(
        hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters=dict(parameters)
    )
    if scaling["rope_type"] == "default":
        wanted, factor = 1.0 / 1e6 ** (torch.arange(0, 128, 2).float() / 128), 1.0
    else:
        wanted, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, torch.device("cpu"))
    ours = RopeConfig.from_dict({"rope_parameters": parameters, "max_position_embeddings": 4096})
    torch.testing.assert_close(ours.inv_freq(128), wanted, rtol=1e-6, atol=0)
    assert ours.attention_factor == pytest.approx(factor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**GEMMA3, "hidden_activation": "gelu"}, "hidden_activation='gelu'.*pytorch_tanh"),
        ({**GEMMA3, "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0.*absent"),
        ({**GEMMA3, "use_bidirectional_attention": True}, "bidirectional_attention=True"),
        (
            {**GEMMA3, "query_pre_attn_scalar": 0},
            r"attn_scalar must be a number in \(0, .*got 0",
        ),
        (
            {**GEMMA3, "sliding_window_pattern": 0},
            "window_pattern must be an integer.*got 0",
        ),
        ({**GEMMA3, "layer_types": ["full_attention"]}, "1 entries.*num_hidden_layers=4"),
        (
            {**GRANITE, "residual_multiplier": 0.0},
            r"multiplier must be a number in \(0, .*got 0.0",
        ),
        ({**SMOLLM3, "no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries"),
        ({**PHI3, "partial_rotary_factor": 0.5, **LONGROPE}, "short_factor.* 8 .*must have 4,"),
        ({**PHI3, "partial_rotary_factor": 0.45}, "rotates 7 dimensions of head_dim=16"),
        (
            {**PHI3, "partial_rotary_factor": 1.5},
            r"factor must be a number in \(0, 1\], got 1.5",
        ),
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM.*LlamaForCausalLM"),
        ({"architectures": None}, r"architectures=\[\]"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'.*'silu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'.*llama3"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "'proportional'.*longrope"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' needs 'original_max"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quant_method='hqq'"),
        ({"hidden_size": None}, r"hidden_size must be an integer in \[1, 131072\], got None"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide"),
        ({"head_dim": 15}, "head_dim=15 must be even"),
        ({"num_attention_heads": 128, "num_key_value_heads": 2}, "head_dim=0 must be even"),
        ({"torch_dtype": "int8"}, "dtype='int8'.*bfloat16"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(LLAMA | changes)


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
@pytest.mark.parametrize(("context", "attention"), [(4096, 1.0), (131072, math.sqrt(1 + 5 / 12))])
def test_longrope(kind: str, context: int, attention: float) -> None:
    """Phi-3 calls it by three names; the context chooses the factors."""
    scaling = {"type": kind, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    raw = LLAMA | PHI3 | {"rope_scaling": scaling, "max_position_embeddings": context}
    [rope] = set(ModelConfig.from_dict(raw).ropes)
    assert rope.attention_factor == pytest.approx(attention)
    plain = RopeConfig().inv_freq(16)
    assert torch.equal(rope.inv_freq(16, 4096), plain)
    assert torch.equal(rope.inv_freq(16, 4097), plain / 2)


def test_gemma3_layers() -> None:
    """Every sixth layer sees everything, and only its rotation is scaled."""
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    changes = {**GEMMA3, **scaling, "num_hidden_layers": 7, "sliding_window": 512}
    config = ModelConfig.from_dict(LLAMA | changes)
    assert config.sliding_windows == (512,) * 5 + (None, 512)
    local, full = config.ropes[0], config.ropes[5]
    assert config.ropes == (local,) * 5 + (full, local)
    assert (local.type, local.theta) == ("default", 10000.0)
    assert (full.type, full.theta, full.factor) == ("linear", 1000000.0, 8.0)
    assert config.embedding_scale == 8.0 and config.attention_scale == 1 / 16
    assert config.tie_word_embeddings and config.gelu


def test_unknown_layer_type() -> None:
    changes = {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 4}
    with pytest.raises(ValueError, match="chunked_attention"):
        ModelConfig.from_dict(QWEN2 | changes)


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 2.5}, 320),
        ({"type": "linear", "factor": 8.0}, 1024),
        ({"type": "linear", "factor": 8.0, "original_max_position_embeddings": 32}, 256),
        ({"rope_type": "llama3", **LLAMA3_ROPE}, 128),
        ({"rope_type": "default"}, 128),
        (None, 128),
    ],
)
def test_scaled_rope_sets_the_context(rope: dict[str, Any] | None, context: int) -> None:
    config = ModelConfig.from_dict(LLAMA | {"rope_scaling": rope})
    assert config.max_position_embeddings == context


def test_rope_scaling_is_read_before_rope_parameters() -> None:
    """As in transformers; a checkpoint of transformers 5 has the latter only."""
    given = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    }
    config = ModelConfig.from_dict(LLAMA | given)
    assert (config.ropes[0].type, config.ropes[0].theta) == ("yarn", 5e5)


@pytest.mark.parametrize("listed", [None, []])
@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "LlamaForCausalLM"),
        ("mistral", "MistralForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
    ],
)
def test_without_architectures_the_model_type_decides(
    listed: list[str] | None, model_type: str, name: str
) -> None:
    config = ModelConfig.from_dict(LLAMA | {"architectures": listed, "model_type": model_type})
    assert config.architecture == name
    with pytest.raises(ValueError, match="architectures=.*is not supported"):
        ModelConfig.from_dict(LLAMA | {"architectures": listed, "model_type": "t5"})
