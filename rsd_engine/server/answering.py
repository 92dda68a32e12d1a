"""Runs the prompts of one request and notes what came of it: metrics and one line in the log."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from rsd_engine.engine.dispatcher import StreamEvent
from rsd_engine.outputs import FinishedEvent, RequestOutput
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.server.async_engine import AsyncRequest, merged
from rsd_engine.server.errors import ApiError
from rsd_engine.server.service import Service

logger = logging.getLogger("rsd_engine.server.requests")


class Answering:
    """One request of a client: one or more prompts with the same parameters.

    Args:
        service: that runs it.
        request_id: the client's, or one made for it.
        kind: of the request, for the log.
    """

    def __init__(self, service: Service, request_id: str, kind: str) -> None:
        self._service = service
        self._request_id = request_id
        self._kind = kind
        self._started = time.perf_counter()
        self._requests: list[AsyncRequest] = []
        self._samples = 0
        self._results: dict[int, RequestOutput] = {}

    async def start(self, prompts: Sequence[Any], params: SamplingParams, *, stream: bool) -> None:
        """Queues the prompts.

        Raises:
            ApiError: see `Service.submit`.
        """
        self._requests = await self._service.submit(prompts, params, stream=stream)
        self._samples = len(prompts) * params.n

    @property
    def prompt_token_ids(self) -> list[tuple[int, ...]]:
        """Of each prompt, once they are queued."""
        return [request.stream.prompt_token_ids for request in self._requests]

    async def results(self) -> list[RequestOutput]:
        """All results, in order of the prompts.

        Raises:
            ApiError: a sample failed.
        """
        async for _ in self.events():
            continue
        found = [self._results[index] for index in range(len(self._requests))]
        for result in found:
            check_result(result)
        return found

    async def events(self) -> AsyncGenerator[tuple[int, StreamEvent], None]:
        """(which prompt, event) as they come; leaving it aborts what still runs."""
        try:
            async with aclosing(merged(self._requests)) as told:
                async for index, event in told:
                    if isinstance(event, FinishedEvent):
                        self._results[index] = event.output
                        self._service.metrics.count_result(event.output, self._seconds())
                    yield index, event
        except RuntimeError as error:
            raise ApiError(503, str(error)) from error
        finally:
            self.end()

    def end(self) -> None:
        """Aborts what still runs and logs the request; again it does nothing."""
        if not self._samples:
            return
        for request in self._requests:
            request.close()
        self._service.release(self._samples)
        self._samples = 0
        first = self._seconds_to_first_text()
        if first is not None:
            self._service.metrics.count_first(first)
        logger.info("%s", json.dumps(self._line(first)))

    def _line(self, first: float | None) -> dict[str, Any]:
        """What is logged: no text of anybody's."""
        results = list(self._results.values())
        metrics = [result.metrics for result in results]
        reasons = [output.finish_reason for result in results for output in result.outputs]
        return {
            "request_id": self._request_id,
            "kind": self._kind,
            "model": self._service.model,
            "prompts": len(self._requests),
            "prompt_tokens": sum(len(result.prompt_token_ids) for result in results),
            "cached_tokens": sum(result.num_cached_tokens for result in results),
            "completion_tokens": sum(
                len(output.token_ids) for result in results for output in result.outputs
            ),
            "steps_accepted": sum(m.steps_accepted for m in metrics),
            "steps_rejected": sum(m.steps_rejected for m in metrics),
            "seconds_to_first_text": first,
            "seconds": self._seconds(),
            "finish_reasons": reasons if len(results) == len(self._requests) else "client gone",
        }

    def _seconds_to_first_text(self) -> float | None:
        told = [r.first_text_at for r in self._requests if r.first_text_at is not None]
        return min(told) - self._started if told else None

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def check_result(result: RequestOutput) -> None:
    """Raises ApiError if a sample of the result failed, or was ended by the server."""
    for output in result.outputs:
        if output.finish_reason == "error" and result.metrics.errors.remote:
            # Where that server is, and what it said, is for the log of this one.
            logger.warning("%s: %s", result.request_id, output.error)
            raise ApiError(502, "the server of one of the models failed, or did not answer in time")
        if output.finish_reason == "error":
            raise ApiError(500, f"the request failed: {output.error}")
        if output.finish_reason == "abort":
            raise ApiError(503, "the server stopped before the request ended")
