"""Every field of a checkpoint's JSON files has one type and one range, and an error of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsd_engine.models.config import ModelConfig
from rsd_engine.models.rope_config import RopeConfig
from rsd_engine.models.schemas import (
    MAX_VOCABULARY,
    EosSchema,
    ModelSchema,
    TokenizerConfigSchema,
    TokenizerSchema,
    read_json,
)
from tests.models.test_config import LLAMA

INTEGERS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window",
    "max_window_layers",
)  # fmt: skip
NO_INTEGERS: tuple[Any, ...] = (-1, 2**40, 10**400, 2.5, "8", True, [8], {"a": 1}, float("nan"))


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as error:
        ModelConfig.from_dict(raw)
    message = str(error.value)
    assert "\n" not in message and len(message) < 250
    return message


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", NO_INTEGERS, ids=lambda value: str(value)[:10])
def test_what_is_no_integer_of_the_range(name: str, value: Any) -> None:
    assert f"config.json: {name} must be an integer in [" in refusal(LLAMA | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 50_000),
        ("max_position_embeddings", 20_000_000),
        ("vocab_size", 50_000_000),
        ("hidden_size", 10**9),
        ("head_dim", 0),
        ("vocab_size", None),
        ("max_window_layers", None),
    ],
)
def test_the_message_names_file_field_value_and_range(name: str, value: Any) -> None:
    message = refusal(LLAMA | {name: value})
    assert message.startswith(f"config.json: {name} must be an integer in [")
    assert message.endswith(f", got {value}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of names"),
        ({"architectures": [None]}, "architectures must be a list of names or null, got None"),
        ({"rms_norm_eps": "tiny"}, r"rms_norm_eps must be a number in [0, 1], got 'tiny'"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a number in [0, 1], got inf"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a number in [0, 1], got 1000"),
        ({"rope_theta": 0}, "rope_theta must be a number in (1, 1e+15], got 0"),
        ({"rope_theta": [1e4]}, "rope_theta must be a number in"),
        ({"attention_bias": "no"}, "attention_bias must be true, false or null, got 'no'"),
        ({"tie_word_embeddings": 2}, "tie_word_embeddings must be true, false or null, got 2"),
        ({"hidden_act": 3}, "hidden_act must be text or null, got 3"),
        ({"torch_dtype": ["bfloat16"]}, "torch_dtype must be text or null"),
        ({"quantization_config": "awq"}, "quantization_config must be a JSON object or null"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be a JSON object or null, got 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "rope_scaling: factor must be"),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, "factor must be a number in (0, 1"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope_scaling: type must be text or null"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": [3]}},
            "rope_parameters: beta_fast must be a number",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 9999.0}, "max_position_embeddings": 10**6},
            "rope scaling to 9999000000 positions",
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4,
                              "high_freq_factor": 4, "original_max_position_embeddings": 64}},
            "high_freq_factor=4.0 must be above low_freq_factor=4.0",
        ),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters has parts for full_att"),
    ],
)  # fmt: skip
def test_other_types(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(LLAMA | changes)


def test_a_missing_size() -> None:
    raw = {name: value for name, value in LLAMA.items() if name != "vocab_size"}
    assert "config.json lacks vocab_size; it must be an integer" in refusal(raw)


def test_null_where_a_field_may_be_absent() -> None:
    names = ("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "attention_bias",
             "tie_word_embeddings", "sliding_window", "layer_types", "torch_dtype")  # fmt: skip
    config = ModelConfig.from_dict(LLAMA | dict.fromkeys(names))
    assert (config.num_kv_heads, config.head_dim, set(config.ropes)) == (4, 16, {RopeConfig()})


def test_absent_fields_stay_absent() -> None:
    """So that the defaults of a family count, which are those of transformers."""
    assert ModelSchema.read({**LLAMA, "other": 1}, "config.json") == {**LLAMA, "other": 1}


@pytest.mark.parametrize("value", [None, 7, [], [7, 8]])
def test_ends_of_text(value: Any) -> None:
    assert EosSchema.check({"eos_token_id": value}, "x").eos_token_id == value


@pytest.mark.parametrize("value", [-1, 2**31 - 1, MAX_VOCABULARY, "7", [7, None], 1.0, {"a": 1}])
def test_what_is_no_end_of_text(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^generation_config.json: eos_token_id must be an id in"):
        EosSchema.check({"eos_token_id": value}, "generation_config.json")


@pytest.mark.parametrize("token", [2**31 - 1, 2**31, 50_000_000, -1, 1.5, None])
@pytest.mark.parametrize("place", ["vocab", "added"])
def test_ids_of_a_tokenizer(token: Any, place: str) -> None:
    """Beyond some 2^31 the tokenizers library ends the process."""
    added = [{"id": token if place == "added" else 3, "content": "x", "special": True}]
    vocab = {"a": 0, "b": token if place == "vocab" else 1}
    raw = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}
    with pytest.raises(
        ValueError, match=rf"^tokenizer.json: .*id in \[0, 1048575\].*, got {token}"
    ):
        TokenizerSchema.check(raw, "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"added_tokens_decoder": {"2147483647": {}}}, "an object from an id in"),
        ({"added_tokens_decoder": {"-1": {}}}, "an object from an id in"),
        ({"added_tokens_decoder": {"one": {}}}, "an object from an id in"),
        ({"added_tokens_decoder": []}, "an object from an id in"),
        ({"chat_template": 5}, "chat_template must be text, a list"),
        ({"eos_token": 5}, "eos_token must be text, an object"),
        ({"add_bos_token": "yes"}, "add_bos_token must be true, false or null"),
        ({"model_max_length": "long"}, "model_max_length must be a number or null"),
    ],
)
def test_settings_of_a_tokenizer(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        TokenizerConfigSchema.check(changes, "tokenizer_config.json")
    assert str(error.value).startswith("tokenizer_config.json: ") and words in str(error.value)


@pytest.mark.parametrize("content", ["[1, 2]", "null", "7", "{", "", "[" * 100_000])
def test_files_that_hold_no_object(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (must hold a JSON object|is not valid)"):
        read_json(path)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    """Some editors put it at the beginning of a file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": 1}), encoding="utf-8-sig")
    assert read_json(path) == {"a": 1}
