"""A server whose answers take known times: the prompt is JSON that says how it is answered.

{"first": s, "gap": s, "chunks": n, "tokens": n}, maybe {"ends": "cut", "error" or "garbage"}, or
{"status": 503}.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

COUNTERS = """\
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m"}} {drafts}
vllm:spec_decode_num_drafts_created{{engine="0",model_name="m"}} 1.7e9
vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="m"}} {drafted}
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="m"}} {accepted}
"""


class FakeServer:
    """Notes what it was asked, when, and how many requests ran at once."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most = 0
        self.counts = False  # whether it has vLLM's counters: 4 drafts of 3 tokens an answer
        self.usage = True
        self.metrics: dict[str, Any] | None = None
        self.running = 0
        self.answered = 0

    def app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/v1/models", self._models)
        app.add_api_route("/metrics", self._metrics)
        app.add_api_route("/v1/chat/completions", self._answer, methods=["POST"])
        app.add_api_route("/v1/completions", self._answer, methods=["POST"])
        return app

    async def _models(self) -> dict[str, Any]:
        model = {"id": "fake", "object": "model", "created": 0, "owned_by": "nobody"}
        return {"object": "list", "data": [model]}

    async def _metrics(self) -> Response:
        n = self.answered
        text = COUNTERS.format(drafts=4.0 * n, drafted=12.0 * n, accepted=9.0 * n)
        return PlainTextResponse(text if self.counts else "process_cpu_seconds_total 1.0\n")

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        self.times.append(time.perf_counter())
        chat = "messages" in body
        how = json.loads(body["messages"][-1]["content"] if chat else body["prompt"])
        if "status" in how:
            error = {"message": "no room\nhere", "type": "x", "code": how["status"]}
            return JSONResponse({"error": error}, how["status"])
        return StreamingResponse(self._stream(how, chat=chat), media_type="text/event-stream")

    async def _stream(self, how: dict[str, Any], *, chat: bool) -> AsyncIterator[bytes]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if chat:
                yield _chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
            for index in range(how["chunks"]):
                await asyncio.sleep(how["gap"] if index else how["first"])
                part = {"delta": {"content": "ab"}} if chat else {"text": "ab"}
                yield _chunk([{"index": 0, "finish_reason": None, **part}])
            if how.get("ends") == "error":
                yield b'data: {"error": {"message": "broke down", "code": 500}}\n\n'
            elif how.get("ends") == "garbage":
                yield b"data: {no json\n\n"
            elif how.get("ends") != "cut":
                for chunk in self._last(how, chat=chat):
                    yield chunk
            yield b"data: [DONE]\n\n"
        finally:
            self.running -= 1

    def _last(self, how: dict[str, Any], *, chat: bool) -> Iterator[bytes]:
        self.answered += 1
        part: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        yield _chunk([{"index": 0, "finish_reason": "stop", **part}])
        tokens = how["tokens"]
        usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
        if self.usage:
            yield _chunk([], usage=usage, metrics=self.metrics)


def _chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
    head = {"id": "x", "object": "chunk", "created": 0, "model": "fake"}
    return b"data: " + json.dumps({**head, "choices": choices, **more}).encode() + b"\n\n"


@contextmanager
def running(fake: FakeServer) -> Iterator[FakeServer]:
    """The server, at a free port."""
    config = uvicorn.Config(fake.app(), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    fake.url = f"http://127.0.0.1:{port}/v1"
    yield fake
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
