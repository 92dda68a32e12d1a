"""A server that listens: clients that hang up, long silences, a signal to stop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from rsd_engine.server.service import Service
from tests.server.conftest import LiveServer

LONG = {"prompt": "The answer", "max_tokens": 400, "ignore_eos": True, "rsd": {"mode": "target"}}


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_idle(service: Service) -> bool:
    return service.num_running == 0 and service.engine.num_open == 0


def test_a_stream_comes_token_by_token(live: LiveServer) -> None:
    body = {**LONG, "max_tokens": 60, "stream": True}
    times = []
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic())
    assert len(times) > 20
    assert times[-1] > times[0]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(live: LiveServer, *, stream: bool) -> None:
    def hang_up() -> None:
        client = httpx.Client(timeout=httpx.Timeout(60, read=0.05))
        with (
            client,
            pytest.raises((httpx.ReadTimeout, ZeroDivisionError)),
            client.stream(
                "POST", f"{live.url}/v1/completions", json={**LONG, "n": 8, "stream": stream}
            ) as answer,
        ):
            for _ in answer.iter_lines():
                raise ZeroDivisionError

    hang_up()
    wait_for(lambda: is_idle(live.service), 3.0)
    metrics = httpx.get(f"{live.url}/metrics").text
    assert 'rsd:request_success_total{finished_reason="length"' not in metrics


def test_comments_fill_long_silences(live: LiveServer) -> None:
    """RSD tells whole steps: nothing comes while one is written."""
    body = {**LONG, "rsd": {"policy": "constant:1"}, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, timeout=60) as answer:
        lines = list(answer.iter_lines())
    assert lines.count(": keep-alive") > 0


def test_stopping_lets_running_requests_end(live: LiveServer) -> None:
    answers: list[httpx.Response] = []
    body = {**LONG, "max_tokens": 200}

    def ask() -> None:
        answers.append(httpx.post(f"{live.url}/v1/completions", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    # On a busy machine one may have ended before another begins.
    wait_for(lambda: live.service.num_running + len(answers) == 3)
    live.server.handle_exit(15, None)
    for thread in threads:
        thread.join(30)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {200}


def test_what_does_not_end_in_time_ends_with_a_clean_error(live: LiveServer) -> None:
    answers: list[httpx.Response] = []
    streamed: list[str] = []
    body = {**LONG, "prompt": ["The"] * 8, "n": 8}

    def ask() -> None:
        answers.append(httpx.post(f"{live.url}/v1/completions", json=body, timeout=60))

    def listen() -> None:
        request = {**LONG, "n": 2, "stream": True}
        with httpx.stream("POST", f"{live.url}/v1/completions", json=request, timeout=60) as got:
            streamed.extend(line for line in got.iter_lines() if line.startswith("data"))

    threads = [threading.Thread(target=ask), threading.Thread(target=listen)]
    for thread in threads:
        thread.start()
    wait_for(lambda: live.service.engine.num_open == 9)
    live.server.handle_exit(15, None)
    time.sleep(0.3)  # a server that closed its door would have done so by now
    late = httpx.post(f"{live.url}/v1/completions", json=LONG)
    assert late.status_code == 503 and "about to stop" in late.json()["error"]["message"]
    for thread in threads:
        thread.join(30)
    assert answers[0].status_code == 503
    assert "stopped" in answers[0].json()["error"]["message"]
    assert streamed[-1] == "data: [DONE]"
    last = json.loads(streamed[-2].removeprefix("data: "))
    assert "choices" in last or last["error"]["code"] == 503
