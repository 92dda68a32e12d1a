"""POST /v1/completions"""

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
from rsd_engine.server.protocol.answers import Completion, CompletionChunk
from rsd_engine.server.protocol.requests import CompletionRequest
from rsd_engine.server.routes.common import answer_id, now, request_id, whole_answer
from rsd_engine.server.sampling import completion_params, echoes_alone
from rsd_engine.server.service import Service
from rsd_engine.server.streaming import DONE, EventStream, event


def completion_routes(service: Service) -> APIRouter:
    """The route of plain completions."""
    router = APIRouter(tags=["completions"])

    @router.post(
        "/v1/completions",
        responses=streamed(Completion, CompletionChunk) | errors(400, 404, 413, 500, 502, 503),
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Completes one prompt or several, given as text or token ids."""
        service.check_model(body.model)
        params = completion_params(
            body, service.default_params, service.options.max_samples, service.modes
        )
        prompts = _prompts(body, service)
        answering = Answering(service, request_id(request), "completion")
        if not body.stream:
            work = _whole(service, answering, body, prompts, params)
            return await whole_answer(request, work)
        if body.echo:
            raise ApiError(400, "echo and stream exclude each other here", "echo")
        await answering.start(prompts, params, stream=True)
        events = _stream(service, answering, body)
        return EventStream(events, service.options.keep_alive_seconds, answering.end)

    return router


def _prompts(body: CompletionRequest, service: Service) -> list[dict[str, Any]]:
    """Each prompt as `Engine.streams` takes it.

    Raises:
        ApiError: there are none, or too many.
    """
    given: Any = body.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    most = service.options.max_prompts
    if not 1 <= len(given) <= most:
        raise ApiError(
            400, f"prompt must be one prompt or at most {most}, got {len(given)}", "prompt"
        )
    question = None if body.rsd is None else body.rsd.question
    own = {} if question is None else {"question": question}
    return [
        {("prompt" if isinstance(prompt, str) else "prompt_token_ids"): prompt, **own}
        for prompt in given
    ]


async def _whole(
    service: Service,
    answering: Answering,
    body: CompletionRequest,
    prompts: list[dict[str, Any]],
    params: SamplingParams,
) -> dict[str, Any]:
    await answering.start(prompts, params, stream=False)
    results = await answering.results()
    if echoes_alone(body):
        results = [replies.prompt_alone(result) for result in results]
    answer: dict[str, Any] = {
        "id": answer_id("cmpl"),
        "object": "text_completion",
        "created": now(),
        "model": service.model,
        "choices": [
            _choice(output, position * params.n + output.index, result, body)
            for position, result in enumerate(results)
            for output in result.outputs
        ],
        "usage": replies.usage(results),
        "metrics": replies.speculative_metrics(results),
    }
    if body.rsd is not None and body.rsd.steps:
        answer["rsd"] = [replies.rsd_object(result) for result in results]
    return answer


def _choice(
    output: CompletionOutput, index: int, result: RequestOutput, body: CompletionRequest
) -> dict[str, Any]:
    prompt = (result.prompt or "") if body.echo else ""
    choice = {
        "index": index,
        "text": prompt + output.text,
        "logprobs": _logprobs(output, result, len(prompt)),
        "finish_reason": replies.finish_reason(output),
        "stop_reason": output.stop_reason,
    }
    if body.return_token_ids:
        choice["prompt_token_ids"] = list(result.prompt_token_ids)
        choice["token_ids"] = list(output.token_ids)
    return choice


def _logprobs(
    output: CompletionOutput, result: RequestOutput, offset: int
) -> dict[str, Any] | None:
    if output.logprobs is None:
        return None
    own = replies.completion_logprobs(output.token_ids, output.logprobs, offset)
    if result.prompt_logprobs is None:
        return own
    before = replies.completion_logprobs(result.prompt_token_ids, result.prompt_logprobs, 0)
    return {name: before[name] + own[name] for name in own}


async def _stream(
    service: Service, answering: Answering, body: CompletionRequest
) -> AsyncIterator[bytes]:
    tokens = replies.StreamTokens(body, answering.prompt_token_ids)
    chunks = _Chunks(service, body, tokens)
    try:
        async with aclosing(answering.events()) as found_events:
            async for position, found in found_events:
                for chunk in chunks.of(position, found):
                    yield event(chunk)
        if body.stream_options is not None and body.stream_options.include_usage:
            yield event(chunks.usage())
    except ApiError as error:
        yield event(error_body(error.status, error.message, error.param))
    yield DONE


class _Chunks:
    """The chunks of one streamed answer, of all its prompts."""

    def __init__(
        self, service: Service, body: CompletionRequest, tokens: replies.StreamTokens
    ) -> None:
        self._tokens = tokens
        self._head = {
            "id": answer_id("cmpl"),
            "object": "text_completion",
            "created": now(),
            "model": service.model,
        }
        self._samples = body.n or 1
        self._shows_steps = body.rsd is not None and body.rsd.steps
        self._offsets: dict[int, int] = {}
        self._begun: set[int] = set()
        self._results: list[RequestOutput] = []

    def of(self, position: int, found: StepEvent | FinishedEvent) -> list[dict[str, Any]]:
        first = position * self._samples
        if isinstance(found, FinishedEvent):
            check_result(found.output)
            self._results.append(found.output)
            return [self._end(first + output.index, output) for output in found.output.outputs]
        own = {}
        if self._shows_steps:
            own = {"rsd": {"prompt": position, "step": replies.step_event(found)}}
        if found.kind == "rejected":
            return [{**self._head, "choices": [], **own}] if own else []
        index = first + found.index
        ids = self._tokens.of_choice(index, found.token_ids)
        if not (found.text or found.logprobs or own or ids.get("token_ids")):
            return []
        return [self._text(index, found, ids) | own]

    def usage(self) -> dict[str, Any]:
        return {
            **self._head,
            "choices": [],
            "usage": replies.usage(self._results),
            "metrics": replies.speculative_metrics(self._results),
        }

    def _text(self, index: int, found: StepEvent, ids: dict[str, Any]) -> dict[str, Any]:
        logprobs = None
        offset = self._offsets.get(index, 0)
        if found.logprobs is not None:
            logprobs = replies.completion_logprobs(found.token_ids, found.logprobs, offset)
        self._offsets[index] = offset + len(found.text)
        return self._chunk(index, found.text, logprobs=logprobs, **ids)

    def _end(self, index: int, output: CompletionOutput) -> dict[str, Any]:
        return self._chunk(
            index,
            "",
            finish_reason=replies.finish_reason(output),
            stop_reason=output.stop_reason,
            **self._tokens.of_choice(index, ()),
        )

    def _chunk(self, index: int, text: str, **more: Any) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None} | more
        if index not in self._begun:
            self._begun.add(index)
            choice |= self._tokens.of_prompt(index)
        return {**self._head, "choices": [choice], **self._tokens.so_far(index)}
