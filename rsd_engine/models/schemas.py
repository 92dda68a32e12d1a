"""What the JSON files of a checkpoint may say: every field's type and range, stated once.

Files are read by these schemas before anything is allocated, so that a null, a list, a negative or
a huge number ends in one line that names file, field, value and what is allowed. Fields that no
schema knows pass unchecked: who reads them checks them, or adds them here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

MAX_VOCABULARY = 2**20  # ids; the largest vocabularies today have 2**18
MAX_POSITIONS = 2**24
MAX_LAYERS = 1000
_SHOWN = 60  # characters of a value in a message


def _whole(low: int, high: int, **options: Any) -> Any:
    return Field(ge=low, le=high, description=f"an integer in [{low}, {high}]", **options)


def _above(low: float, high: float, **options: Any) -> Any:
    words = f"a number in ({low:g}, {high:g}]"
    return Field(gt=low, le=high, allow_inf_nan=False, description=words, **options)


def _flag() -> Any:
    return Field(default=None, description="true, false or null")


def _text() -> Any:
    return Field(default=None, description="text or null")


def _id_key(key: str) -> str:
    if not key.isascii() or not key.isdigit() or int(key[:20]) >= MAX_VOCABULARY:
        raise ValueError
    return key


def _object() -> Any:
    return Field(default=None, description="a JSON object or null")


_FACTORS = "a list of numbers in (0, 1e+06] or null"
_Factor = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
_ID = f"an id in [0, {MAX_VOCABULARY - 1}]"
_TOKEN = "text, an object with its content, or null"
TokenId = Annotated[int, Field(ge=0, lt=MAX_VOCABULARY)]
IdKey = Annotated[str, AfterValidator(_id_key)]
_Token = str | dict[str, Any] | None


class Schema(BaseModel):
    """A JSON object; types are taken as they are: "4", 4.0 and true are no integers."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    @classmethod
    def check(cls, raw: object, file: str) -> Self:
        """`raw` as the schema has it.

        Args:
            raw: the content of the file.
            file: its name, for messages.

        Raises:
            ValueError: in one line, with file, field, value and what is allowed.
        """
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise ValueError(cls._message(error.errors()[0], raw, file)) from None

    @classmethod
    def read(cls, raw: object, file: str) -> dict[str, Any]:
        """The fields that `raw` gives, checked as by `check`; absent ones stay absent."""
        return cls.check(raw, file).model_dump(exclude_unset=True)

    @classmethod
    def _message(cls, error: ErrorDetails, raw: object, file: str) -> str:
        path = error["loc"]
        if not path:
            return f"{file} must hold a JSON object, got {shown(raw)}"
        name, allowed = str(path[0]), cls.model_fields[str(path[0])].description
        if error["type"] == "missing" and len(path) == 1:
            return f"{file} lacks {name}; it must be {allowed}"
        return f"{file}: {name} must be {allowed}, got {shown(error['input'])}"


class KindSchema(Schema):
    """What a config.json says a model is; read first, for other kinds have other fields."""

    architectures: list[str] | None = Field(default=None, description="a list of names or null")
    model_type: str | None = _text()


class ModelSchema(KindSchema):
    """config.json of a decoder, as transformers 4 or 5 writes it."""

    vocab_size: int = _whole(1, MAX_VOCABULARY)
    hidden_size: int = _whole(1, 2**17)
    intermediate_size: int = _whole(1, 2**20)
    num_hidden_layers: int = _whole(1, MAX_LAYERS)
    num_attention_heads: int = _whole(1, 1024)
    num_key_value_heads: int | None = _whole(1, 1024, default=None)
    head_dim: int | None = _whole(2, 1024, default=None)
    max_position_embeddings: int = _whole(2, MAX_POSITIONS)
    rms_norm_eps: float = Field(
        default=1e-6, ge=0, le=1, allow_inf_nan=False, description="a number in [0, 1]"
    )
    hidden_act: str | None = _text()
    rope_theta: float | None = _above(1, 1e15, default=None)
    rope_scaling: dict[str, Any] | None = _object()
    rope_parameters: dict[str, Any] | None = _object()
    partial_rotary_factor: float | None = _above(0, 1, default=None)
    attention_bias: bool | None = _flag()
    mlp_bias: bool | None = _flag()
    tie_word_embeddings: bool | None = _flag()
    use_sliding_window: bool | None = _flag()
    sliding_window: int | None = _whole(1, MAX_POSITIONS, default=None)
    max_window_layers: int = _whole(0, 2**31 - 1, default=0)
    layer_types: list[str] | None = Field(default=None, description="a list of names or null")
    hidden_activation: str | None = _text()
    query_pre_attn_scalar: float = _above(0, 1e6, default=1)
    sliding_window_pattern: int = _whole(1, MAX_LAYERS, default=1)
    rope_local_base_freq: float = _above(1, 1e15, default=2)
    embedding_multiplier: float = _above(0, 1e6, default=1)
    attention_multiplier: float = _above(0, 1e6, default=1)
    residual_multiplier: float = _above(0, 1e6, default=1)
    logits_scaling: float = _above(0, 1e6, default=1)
    no_rope_layers: list[int] | None = Field(
        default=None, description="a list of 0s and 1s or null"
    )
    no_rope_layer_interval: int = _whole(1, MAX_LAYERS, default=1)
    original_max_position_embeddings: int = _whole(1, MAX_POSITIONS, default=1)
    quantization_config: dict[str, Any] | None = _object()
    dtype: str | None = _text()
    torch_dtype: str | None = _text()


class RopeSchema(Schema):
    """`rope_scaling` or `rope_parameters` of a config.json."""

    rope_type: str | None = _text()
    type: str | None = _text()
    rope_theta: float | None = _above(1, 1e15, default=None)
    partial_rotary_factor: float | None = _above(0, 1, default=None)
    factor: float | None = _above(0, 10_000, default=None)
    original_max_position_embeddings: int | None = _whole(1, MAX_POSITIONS, default=None)
    low_freq_factor: float | None = _above(0, 10_000, default=None)
    high_freq_factor: float | None = _above(0, 10_000, default=None)
    beta_fast: float | None = _above(0, 10_000, default=None)
    beta_slow: float | None = _above(0, 10_000, default=None)
    attention_factor: float | None = _above(0, 100, default=None)
    mscale: float | None = Field(
        default=None, ge=0, le=100, allow_inf_nan=False, description="a number in [0, 100]"
    )
    mscale_all_dim: float | None = Field(
        default=None, ge=0, le=100, allow_inf_nan=False, description="a number in [0, 100]"
    )
    truncate: bool | None = _flag()
    short_factor: list[_Factor] | None = Field(default=None, description=_FACTORS)
    long_factor: list[_Factor] | None = Field(default=None, description=_FACTORS)
    frequency_factors: list[_Factor] | None = Field(default=None, description=_FACTORS)


class EosSchema(Schema):
    """What a config.json or generation_config.json says of the end of a text."""

    eos_token_id: TokenId | list[TokenId] | None = Field(
        default=None, description=f"{_ID}, a list of them or null"
    )


class TokenizerConfigSchema(Schema):
    """tokenizer_config.json, and the files beside it that may give the same fields."""

    tokenizer_class: str | None = _text()
    bos_token: _Token = Field(default=None, description=_TOKEN)
    eos_token: _Token = Field(default=None, description=_TOKEN)
    pad_token: _Token = Field(default=None, description=_TOKEN)
    unk_token: _Token = Field(default=None, description=_TOKEN)
    chat_template: str | list[dict[str, str]] | dict[str, str] | None = Field(
        default=None, description="text, a list of {'name': ..., 'template': ...} or null"
    )
    added_tokens_decoder: dict[IdKey, dict[str, Any]] | None = Field(
        default=None, description=f"an object from {_ID} to a token"
    )
    add_bos_token: bool | None = _flag()
    add_eos_token: bool | None = _flag()
    clean_up_tokenization_spaces: bool | None = _flag()
    split_special_tokens: bool | None = _flag()
    model_max_length: int | float | None = Field(default=None, description="a number or null")


class IdsSchema(Schema):
    """vocab.json or added_tokens.json, as `tokens`."""

    tokens: dict[str, TokenId] = Field(description=f"an object from a token to {_ID}")


class AddedTokenSchema(Schema):
    """An entry of `added_tokens` in tokenizer.json."""

    id: TokenId
    content: str


class TokenizerModelSchema(Schema):
    """`model` of tokenizer.json."""

    vocab: dict[str, TokenId] | list[Any]


class TokenizerSchema(Schema):
    """tokenizer.json: its ids. The tokenizers library checks the rest, but runs out of memory or
    ends the process where an id is huge."""

    model: TokenizerModelSchema = Field(description=f"an object with a vocab of ids, each {_ID}")
    added_tokens: list[AddedTokenSchema] = Field(
        description=f"a list of tokens with content and id, which is {_ID}"
    )


def shown(value: object) -> str:
    """A value in a message: in one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes out
        return "a huge integer"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {shown(content)}")
    return content
