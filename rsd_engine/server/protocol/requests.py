"""Bodies of requests.

Types are checked here, ranges by `SamplingParams`, so that both faces of the engine allow the same.
Fields that are not known are taken and ignored, as OpenAI's clients expect; in `rsd` they are
errors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictStr

from rsd_engine.sampling_params import MAX_SEED, ModeName, OverflowName, SpeculateName

TokenIds = list[Annotated[int, Field(ge=0, lt=2**31)]]
Flag = StrictBool


class StreamOptions(BaseModel):
    """What a stream tells besides the text."""

    include_usage: Flag = False


class RsdOptions(BaseModel):
    """What no other server has: how steps are written, scored and shown."""

    model_config = ConfigDict(extra="forbid")

    mode: ModeName | None = None
    policy: StrictStr | None = Field(None, description="as on the command line: `threshold:0.7`")
    threshold: float | None = Field(None, description="short for the policy `threshold:T`")
    max_steps: int | None = None
    max_step_tokens: int | None = None
    prm_overflow: OverflowName | None = None
    speculate: SpeculateName | None = Field(None, description="who guesses the target's tokens")
    num_guesses: int | None = None
    question: StrictStr | None = Field(None, description="what the reward model reads as problem")
    steps: Flag = Field(False, description="send every step: source, reward, rejected text")


class SamplingFields(BaseModel):
    """What both kinds of completion take."""

    model_config = ConfigDict(extra="allow")

    model: StrictStr | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: list[StrictStr] | None = None
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: Flag | None = None
    include_stop_str_in_output: Flag | None = None
    skip_special_tokens: Flag | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    rsd: RsdOptions | None = None


class ResponseFormat(BaseModel):
    """How the text is to look; only plain text so far."""

    type: StrictStr


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions"""

    messages: list[dict[str, JsonValue]]
    max_completion_tokens: int | None = None
    logprobs: Flag | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, JsonValue]] | None = None
    tool_choice: JsonValue = None
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag = False
    chat_template: StrictStr | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None


class CompletionRequest(SamplingFields):
    """POST /v1/completions"""

    prompt: StrictStr | TokenIds | list[StrictStr] | list[TokenIds]
    logprobs: int | None = None
    echo: Flag = False
    suffix: StrictStr | None = None
    best_of: int | None = None


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
    messages: list[dict[str, JsonValue]] | None = None


class ScoreRequest(BaseModel):
    """POST /v1/score"""

    model: StrictStr | None = None
    input: ScoreInput | list[ScoreInput]


class DetokenizeRequest(BaseModel):
    """POST /detokenize"""

    model: StrictStr | None = None
    tokens: TokenIds


FinishReason = Literal["stop", "length", "abort"]
