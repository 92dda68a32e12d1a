"""Bodies of requests.

Types are checked here, ranges by `SamplingParams`, so that both faces of the engine allow the same.
Fields that are not known are taken and ignored, as OpenAI's clients expect; in `rsd` they are
errors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StrictStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from rsd_engine.sampling_params import MAX_SEED, RANGES, ModeName, OverflowName, SpeculateName


def _number(value: object) -> object:
    """Refuses flags and text, of which pydantic would make numbers."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("number", "must be a number, not text or a flag")
    return value


def _one_of(forms: str) -> WrapValidator:
    """Says which forms a field may have, in place of what each of them lacks."""

    def check(value: object, allowed: ValidatorFunctionWrapHandler) -> object:
        try:
            return allowed(value)
        except ValidationError:
            raise PydanticCustomError("one_of", f"must be {forms}") from None

    return WrapValidator(check)


Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
TokenIds = list[Annotated[Integer, Field(ge=0, lt=2**31)]]
Flag = StrictBool
# `Engine.chat` reads them, and says what is wrong with one; this is what it allows.
Message = Annotated[
    dict[str, JsonValue],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"type": "string", "examples": ["system", "user", "assistant"]},
                "content": {
                    "description": "null, or none, in a message of the assistant alone",
                    "anyOf": [
                        {"type": "null"},
                        {"type": "string"},
                        {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["type", "text"],
                                "properties": {
                                    "type": {"const": "text"},
                                    "text": {"type": "string"},
                                },
                            },
                        },
                    ],
                },
            },
        }
    ),
]
_NAMES = {"top_logprobs": "logprobs", "max_completion_tokens": "max_tokens"}


def _describe_ranges(schema: dict[str, Any]) -> None:
    """Tells which numbers `SamplingParams` allows, which is what checks them."""
    for name, field in schema["properties"].items():
        allowed = RANGES.get(_NAMES.get(name, name))
        for kind in field.get("anyOf", ()):
            if allowed is not None and kind.get("type") in ("integer", "number"):
                kind.setdefault(
                    "exclusiveMinimum" if allowed.open_low else "minimum", allowed.least
                )
                kind.setdefault("maximum", allowed.most)


class StreamOptions(BaseModel):
    """What a stream tells besides the text."""

    include_usage: Flag = Field(False, description="a last chunk with the usage")
    continuous_usage_stats: Flag = Field(False, description="usage so far on every chunk")


class RsdOptions(BaseModel):
    """What no other server has: how steps are written, scored and shown."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_describe_ranges)

    mode: ModeName | None = None
    policy: StrictStr | None = Field(None, description="as on the command line: `threshold:0.7`")
    threshold: Number | None = Field(None, description="short for the policy `threshold:T`")
    max_steps: Integer | None = None
    max_step_tokens: Integer | None = None
    prm_overflow: OverflowName | None = None
    speculate: SpeculateName | None = Field(None, description="who guesses the target's tokens")
    num_guesses: Integer | None = None
    step_candidates: Integer | None = Field(None, description="drafts of every step")
    select: StrictStr | None = Field(None, description="which is taken: `best`, `softmax:20`")
    question: StrictStr | None = Field(None, description="what the reward model reads as problem")
    steps: Flag = Field(False, description="send every step: source, reward, rejected text")


class SamplingFields(BaseModel):
    """What both kinds of completion take."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_describe_ranges)

    model: StrictStr | None = None
    n: Integer | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Integer | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: list[StrictStr] | None = None
    seed: Annotated[Integer, Field(ge=-1, le=MAX_SEED)] | None = None
    max_tokens: Integer | None = None
    min_tokens: Integer | None = None
    stop: Annotated[
        StrictStr | list[StrictStr] | None, _one_of("a string or a list of strings")
    ] = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: Flag | None = None
    include_stop_str_in_output: Flag | None = None
    skip_special_tokens: Flag | None = None
    prompt_logprobs: Integer | None = None
    truncate_prompt_tokens: Integer | None = None
    return_token_ids: Flag | None = Field(None, description="ids beside the texts, as vLLM has it")
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    rsd: RsdOptions | None = None


class ResponseFormat(BaseModel):
    """How the text is to look; only plain text so far."""

    type: StrictStr


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(json_schema_extra={"minItems": 1})
    max_completion_tokens: Integer | None = None
    logprobs: Flag | None = None
    top_logprobs: Integer | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, JsonValue]] | None = None
    tool_choice: JsonValue = None
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag = False
    chat_template: StrictStr | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None


class CompletionRequest(SamplingFields):
    """POST /v1/completions"""

    prompt: Annotated[
        StrictStr | TokenIds | list[StrictStr] | list[TokenIds],
        _one_of("text, token ids from 0 to 2147483647, or a list of texts or of such ids"),
        Field(json_schema_extra={"minLength": 1, "minItems": 1}),
    ]
    # 0 is allowed for a prompt that is to be echoed alone.
    max_tokens: Annotated[Integer, Field(json_schema_extra={"minimum": 0})] | None = None
    logprobs: Integer | None = None
    echo: Flag | None = None
    suffix: StrictStr | None = None
    best_of: Integer | None = None


class TokenizeRequest(BaseModel):
    """POST /tokenize"""

    model: StrictStr | None = None
    prompt: StrictStr
    add_special_tokens: Flag = True


class ScoreInput(BaseModel):
    """A solution: a question and its steps, or a conversation that ends with it."""

    model_config = ConfigDict(extra="forbid")

    question: StrictStr | None = None
    steps: StrictStr | list[StrictStr] | None = None
    messages: list[Message] | None = None


class ScoreRequest(BaseModel):
    """POST /v1/score"""

    model: StrictStr | None = None
    input: ScoreInput | list[ScoreInput] = Field(json_schema_extra={"minItems": 1})


class DetokenizeRequest(BaseModel):
    """POST /detokenize"""

    model: StrictStr | None = None
    tokens: TokenIds


FinishReason = Literal["stop", "length", "abort"]
