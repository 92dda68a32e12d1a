"""Ray Serve on a cluster of this machine: replicas that are killed, streams, and the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from ray import serve

from rsd_engine import Engine, SamplingParams
from rsd_engine.demo.problems import generate
from rsd_engine.integrations.ray.serving import app_builder
from tests.integrations.ray.cluster import (
    REPLICA,
    free_port,
    kill_one,
    processes,
    ray_cluster,
)
from tests.integrations.ray.conftest import ENGINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROBLEMS = generate(seed=5, split="test", num=300)
LONG = {"model": "demo", "prompt": "The", "max_tokens": 900, "stream": True}
WITHOUT_END: dict[str, Any] = {"ignore_eos": True, "rsd": {"mode": "target"}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two replicas behind one address."""
    port = free_port()
    with ray_cluster(num_cpus=4):
        serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 60})
        more = {"served_model_name": "demo", "min_replicas": 2, "num_gpus": 0, "drain_seconds": 20}
        serve.run(app_builder({**ENGINE, **more}))
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def chat(problem: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": PROBLEMS[problem].question}]


def test_a_killed_replica_loses_no_request(url: str) -> None:
    client: Any = openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=5, timeout=60
    ).with_raw_response
    retries: list[int] = []
    texts: dict[int, str] = {}

    def ask(problem: int) -> None:
        answer = client.chat.completions.create(
            model="demo", messages=chat(problem), temperature=0, max_tokens=256
        )
        texts[problem] = answer.parse().choices[0].message.content
        retries.append(answer.retries_taken)

    def kill() -> None:
        while len(texts) < 60:
            time.sleep(0.01)
        kill_one(REPLICA)

    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(24) as threads:
        list(threads.map(ask, range(len(PROBLEMS))))
    killer.join()
    assert len(retries) == len(PROBLEMS)
    assert sum(retries) > 0
    params = SamplingParams(temperature=0.0, max_tokens=256)
    with Engine(**ENGINE) as engine:
        chats = [chat(i) for i in range(len(PROBLEMS))]
        results = engine.chat(chats, params, use_tqdm=False)
    assert [texts[i] for i in range(len(PROBLEMS))] == [r.outputs[0].text for r in results]
    wait_for_replicas(2)


def test_streams_come_bit_by_bit(url: str) -> None:
    with httpx.stream("POST", f"{url}/v1/completions", json=LONG | WITHOUT_END) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        times = [time.monotonic() for _ in answer.iter_lines()]
    assert len(times) > 100
    assert times[-1] - times[0] > 0.1


def test_a_client_that_hangs_up_frees_its_slots(url: str) -> None:
    body = LONG | WITHOUT_END | {"n": 4}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    deadline = time.monotonic() + 10
    while any(running(url) for _ in range(8)):  # whichever replica answers
        assert time.monotonic() < deadline


def running(url: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=30).text
    [line] = [line for line in text.splitlines() if line.startswith("rsd:num_requests_running{")]
    return float(line.split()[-1])


def test_a_stream_whose_replica_is_killed_does_not_end_as_if_it_were_whole(url: str) -> None:
    wait_for_replicas(2)
    lines: list[str] = []
    body = LONG | WITHOUT_END | {"n": 4}
    try:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if len(lines) == 50:
                    for _ in processes(REPLICA):
                        kill_one(REPLICA)
    except httpx.HTTPError:
        pass
    assert len(lines) >= 50
    assert "data: [DONE]" not in lines
    wait_for_replicas(2)


def test_bad_requests_keep_their_errors(url: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "temperature": -1})
    assert answer.status_code == 400
    assert "temperature" in answer.json()["error"]["message"]


def test_the_end_waits_for_running_requests(url: str) -> None:
    """The last test of this module: it takes the application away."""
    answers: list[httpx.Response] = []
    body = {**LONG, **WITHOUT_END, "stream": False, "n": 4}

    def ask() -> None:
        answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not any(running(url) for _ in range(4)):
        time.sleep(0.01)
    serve.delete("default")
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {3600}


def wait_for_replicas(count: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        states: Any = serve.status().applications["default"].deployments["rsd"].replica_states
        if states.get("RUNNING") == count == len(processes(REPLICA)):
            return
        assert time.monotonic() < deadline, states
        time.sleep(0.1)
