"""POST /v1/chat/completions"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from rsd_engine.outputs import CompletionOutput, FinishedEvent, RequestOutput, StepEvent
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.server import replies
from rsd_engine.server.answering import Answering, check_result
from rsd_engine.server.errors import ApiError, error_body
from rsd_engine.server.openapi import errors, streamed
from rsd_engine.server.protocol.answers import ChatChunk, ChatCompletion
from rsd_engine.server.protocol.requests import ChatRequest
from rsd_engine.server.routes.common import answer_id, now, request_id, whole_answer
from rsd_engine.server.sampling import chat_params
from rsd_engine.server.service import Service
from rsd_engine.server.streaming import DONE, EventStream, event


def chat_routes(service: Service) -> APIRouter:
    """The route of chats."""
    router = APIRouter(tags=["completions"])

    @router.post(
        "/v1/chat/completions",
        responses=streamed(ChatCompletion, ChatChunk) | errors(400, 404, 413, 500, 502, 503),
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation."""
        service.check_model(body.model)
        params = chat_params(body, service.default_params, service.options.max_samples)
        prompt = _prompt(body, service)
        answering = Answering(service, request_id(request), "chat")
        if not body.stream:
            work = _whole(service, answering, body, prompt, params)
            return await whole_answer(request, work)
        await answering.start([prompt], params, stream=True)
        events = _stream(service, answering, body)
        return EventStream(events, service.options.keep_alive_seconds, answering.end)

    return router


def _prompt(body: ChatRequest, service: Service) -> dict[str, Any]:
    """The conversation as `Engine.streams` takes it.

    Raises:
        ApiError: it asks for something that is not here.
    """
    if body.tools or body.tool_choice not in (None, "none"):
        raise ApiError(400, "tools are not supported; leave tools and tool_choice out", "tools")
    if body.response_format is not None and body.response_format.type != "text":
        kind = body.response_format.type
        raise ApiError(
            400, f"response_format must be of type 'text', got {kind!r}", "response_format"
        )
    if body.chat_template is not None and not service.options.trust_chat_templates:
        raise ApiError(
            400,
            "chat_template: this server takes no templates of requests; start it with "
            "--trust-chat-templates to allow them",
            "chat_template",
        )
    prompt: dict[str, Any] = {
        "messages": body.messages,
        "continue_final_message": body.continue_final_message,
    }
    for name in ("add_generation_prompt", "chat_template", "chat_template_kwargs"):
        if getattr(body, name) is not None:
            prompt[name] = getattr(body, name)
    if body.rsd is not None and body.rsd.question is not None:
        prompt["question"] = body.rsd.question
    return prompt


async def _whole(
    service: Service,
    answering: Answering,
    body: ChatRequest,
    prompt: dict[str, Any],
    params: SamplingParams,
) -> dict[str, Any]:
    await answering.start([prompt], params, stream=False)
    [result] = await answering.results()
    answer: dict[str, Any] = {
        "id": answer_id("chatcmpl"),
        "object": "chat.completion",
        "created": now(),
        "model": service.model,
        "choices": [_choice(output, body) for output in result.outputs],
        "usage": replies.usage([result]),
        "metrics": replies.speculative_metrics([result]),
    }
    if body.return_token_ids:
        answer["prompt_token_ids"] = list(result.prompt_token_ids)
    if body.rsd is not None and body.rsd.steps:
        answer["rsd"] = replies.rsd_object(result)
    return answer


def _choice(output: CompletionOutput, body: ChatRequest) -> dict[str, Any]:
    logprobs = output.logprobs
    choice = {
        "index": output.index,
        "message": {"role": "assistant", "content": output.text},
        "logprobs": None if logprobs is None else replies.chat_logprobs(output.token_ids, logprobs),
        "finish_reason": replies.finish_reason(output),
        "stop_reason": output.stop_reason,
    }
    if body.return_token_ids:
        choice["token_ids"] = list(output.token_ids)
    return choice


async def _stream(
    service: Service, answering: Answering, body: ChatRequest
) -> AsyncIterator[bytes]:
    tokens = replies.StreamTokens(body, answering.prompt_token_ids)
    chunks = _Chunks(service, body, tokens)
    try:
        for index in range(body.n or 1):
            yield event(chunks.first(index))
        async with aclosing(answering.events()) as found_events:
            async for _, found in found_events:
                for chunk in chunks.of(found):
                    yield event(chunk)
    except ApiError as error:
        yield event(error_body(error.status, error.message, error.param))
    yield DONE


class _Chunks:
    """The chunks of one streamed answer."""

    def __init__(self, service: Service, body: ChatRequest, tokens: replies.StreamTokens) -> None:
        self._tokens = tokens
        self._head = {
            "id": answer_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": now(),
            "model": service.model,
        }
        self._shows_steps = body.rsd is not None and body.rsd.steps
        self._shows_usage = body.stream_options is not None and body.stream_options.include_usage

    def first(self, index: int) -> dict[str, Any]:
        """The one with which a sample begins."""
        chunk = self._delta(index, {"role": "assistant", "content": ""})
        return chunk | self._tokens.of_prompt(index)

    def of(self, found: StepEvent | FinishedEvent) -> list[dict[str, Any]]:
        if isinstance(found, FinishedEvent):
            return self._last(found.output)
        own = {"rsd": {"step": replies.step_event(found)}} if self._shows_steps else {}
        if found.kind == "rejected":
            return [{**self._head, "choices": [], **own}] if own else []
        more = self._tokens.of_choice(found.index, found.token_ids)
        if not (found.text or found.logprobs or own or more.get("token_ids")):
            return []
        if found.logprobs is not None:
            more["logprobs"] = replies.chat_logprobs(found.token_ids, found.logprobs)
        return [self._delta(found.index, {"content": found.text}, **more) | own]

    def _delta(self, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        usage = self._tokens.so_far(index)
        return {**self._head, "choices": [choice | more], **usage}

    def _last(self, result: RequestOutput) -> list[dict[str, Any]]:
        check_result(result)
        ends = [
            self._delta(
                output.index,
                {},
                finish_reason=replies.finish_reason(output),
                stop_reason=output.stop_reason,
                **self._tokens.of_choice(output.index, ()),
            )
            for output in result.outputs
        ]
        if self._shows_usage:
            usage = {"usage": replies.usage([result])}
            metrics = {"metrics": replies.speculative_metrics([result])}
            ends.append({**self._head, "choices": [], **usage, **metrics})
        return ends
