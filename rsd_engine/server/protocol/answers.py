"""Bodies of answers, for `/openapi.json`; the tests hold every answer against them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rsd_engine.outputs import StepKind, StepSource
from rsd_engine.server.protocol.requests import FinishReason

_OwnReason = Literal["stop", "length", "steps", "abort"]


def _leave_out_titles(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        field.pop("title", None)


class Answer(BaseModel):
    """Any part of one: no other field comes."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_leave_out_titles)


class Error(Answer):
    """What went wrong, in one line."""

    message: str
    type: str
    param: str | None = Field(description="the field at fault")
    code: int = Field(description="the status")


class ErrorAnswer(Answer):
    """Any answer that is not the one asked for; in a stream that has begun, an event."""

    error: Error


class PredictionDetails(Answer):
    """A prediction is a draft's token. Rejected ones are not in `completion_tokens`."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class PromptDetails(Answer):
    """Of the target's prompt; of the draft's where it writes alone."""

    cached_tokens: int = Field(description="found in the prefix cache, and not read")


class Usage(Answer):
    """Tokens of prompts and outputs."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: PredictionDetails | None = None


class SpeculativeDecoding(Answer):
    """vLLM's numbers, a step being a round."""

    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    draft_acceptance_rate: float
    mean_acceptance_length: float


class SpeculativeMetrics(Answer):
    """Of a request whose steps were scored, or whose tokens were guessed."""

    speculative_decoding: SpeculativeDecoding


class RejectedStepAnswer(Answer):
    """A draft's step that was not kept."""

    text: str
    reward: float | None
    num_tokens: int


class CandidateAnswer(Answer):
    """A candidate of a step that another one was taken in place of."""

    text: str
    source: StepSource
    reward: float | None
    score: float | None = Field(description="of GSI; null where the reward decided")
    num_tokens: int


class StepAnswer(Answer):
    """A kept step."""

    text: str
    source: StepSource
    reward: float | None
    num_tokens: int
    guessed: int = Field(description="of its tokens: guesses that the target verified")
    rejected: RejectedStepAnswer | None = Field(description="the step in whose place it stands")
    candidates: list[CandidateAnswer] = Field(description="that lost against either of them")


class SampleSteps(Answer):
    """The steps of one sample."""

    index: int
    finish_reason: _OwnReason
    steps: list[StepAnswer]


class RsdAnswer(Answer):
    """What the engine knows of a prompt beyond OpenAI's fields."""

    seed: int
    metrics: dict[str, JsonValue]
    choices: list[SampleSteps]


class _Choice(Answer):
    index: int
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class _Completion(Answer):
    id: str
    created: int
    model: str
    usage: Usage
    metrics: SpeculativeMetrics | None


class TokenLogprob(Answer):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """A token that was written, beside the likeliest ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answer):
    """Of every token."""

    content: list[ChosenTokenLogprob]


class ChatAnswerMessage(Answer):
    """The model's message."""

    role: Literal["assistant"]
    content: str


class ChatChoice(_Choice):
    """One sample of a chat."""

    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(_Completion):
    """The answer to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = None
    rsd: RsdAnswer | None = None


class CompletionLogprobs(Answer):
    """A place for every token, those of an echoed prompt included."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Choice):
    """One sample of a prompt."""

    text: str
    logprobs: CompletionLogprobs | None
    prompt_token_ids: list[int] | None = None


class Completion(_Completion):
    """The answer to a completion."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    rsd: list[RsdAnswer] | None = None


class DecidedStep(Answer):
    """A step in a stream, the rejected ones included."""

    index: int
    kind: StepKind
    source: StepSource
    reward: float | None
    text: str
    num_tokens: int
    candidates: list[CandidateAnswer] = Field(description="that lost against a kept step")


class RsdChunk(Answer):
    """What a stream tells beyond OpenAI's fields."""

    step: DecidedStep
    prompt: int | None = Field(None, description="of several prompts the step's")


class _ChunkChoice(Answer):
    index: int
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class _Chunk(Answer):
    id: str
    created: int
    model: str
    usage: Usage | None = None
    metrics: SpeculativeMetrics | None = None
    rsd: RsdChunk | None = None


class ChatDelta(Answer):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_ChunkChoice):
    """What a chunk adds to a sample."""

    delta: ChatDelta
    logprobs: ChatLogprobs | None


class ChatChunk(_Chunk):
    """An event of a streamed chat."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = None


class CompletionChunkChoice(_ChunkChoice):
    """What a chunk adds to a sample of a prompt."""

    text: str
    logprobs: CompletionLogprobs | None
    prompt_token_ids: list[int] | None = None


class CompletionChunk(_Chunk):
    """An event of a streamed completion."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]


class Scored(Answer):
    """The rewards of one solution."""

    index: int
    object: Literal["score"]
    steps: list[str]
    rewards: list[float | None]


class Scores(Answer):
    """The rewards of all solutions."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Scored]
    usage: Usage


class Model(Answer):
    """A name that requests may give."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class Models(Answer):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class Tokens(Answer):
    """A prompt as ids."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(Answer):
    """Ids as a prompt."""

    prompt: str


class Version(Answer):
    """Of rsd-engine."""

    version: str
