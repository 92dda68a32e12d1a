"""A Ray Serve replica and its arguments, without Ray Serve running."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import httpx
import pytest
from ray.serve import Application

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.integrations.ray.arguments import ServeArguments
from rsd_engine.integrations.ray.replica import Replica
from rsd_engine.integrations.ray.serving import app_builder
from rsd_engine.server.service import ServerOptions
from tests.integrations.ray.conftest import ENGINE

TEXT = {**ENGINE, "max_num_seqs": "4", "num_gpus": "0", "max_queue": "3"}


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    monkeypatch.setenv("RSD_API_KEYS", "sesame")
    given = ServeArguments.read({**TEXT, "served_model_name": "demo"})
    made = Replica(given.engine(), given.server())
    yield made
    made.__del__()


def ask(replica: Replica, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    app = replica.__serve_build_asgi_app__()

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": "Bearer sesame"}
        async with httpx.AsyncClient(transport=transport, base_url="http://rsd") as client:
            if body is None:
                return await client.get(path, headers=headers)
            return await client.post(path, json=body, headers=headers, timeout=60)

    return asyncio.run(send())


def test_a_replica_answers(replica: Replica) -> None:
    body = {"model": "demo", "prompt": "2 + 3", "max_tokens": 8, "temperature": 0}
    answer = ask(replica, "/v1/completions", body)
    assert answer.status_code == 200, answer.text
    [expected] = replica._engine.generate(
        "2 + 3", SamplingParams(temperature=0.0, max_tokens=8), use_tqdm=False
    )
    assert answer.json()["choices"][0]["text"] == expected.outputs[0].text
    assert ask(replica, "/health").status_code == 200


def test_a_failed_engine_is_not_healthy(replica: Replica) -> None:
    replica.check_health()
    replica._async_engine.failure = RuntimeError("the GPU is gone")
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        replica.check_health()


def test_every_argument_of_engine_and_server_can_be_given() -> None:
    known = set(ServeArguments.model_fields)
    server = {field.name for field in fields(ServerOptions)} - {"model_names", "api_keys"}
    assert set(inspect.signature(Engine).parameters) <= known
    assert server <= known


def test_defaults_are_those_of_engine_and_server() -> None:
    defaults = {name: field.default for name, field in ServeArguments.model_fields.items()}
    for name, parameter in inspect.signature(Engine).parameters.items():
        assert defaults[name] == parameter.default, name
    for field in fields(ServerOptions):
        if field.name not in ("model_names", "api_keys"):
            assert defaults[field.name] == field.default, field.name


def test_arguments_as_text() -> None:
    given = ServeArguments.read({**TEXT, "policy": "threshold:0.5", "vllm_metrics": "true"})
    engine = given.engine()
    assert engine == {**ENGINE, "policy": Threshold(0.5)}
    server = given.server()
    assert (server.max_queue, server.vllm_metrics) == (3, True)
    assert server.model_names == (ENGINE["target"],)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_num_seqs": "many"}, "max_num_seqs: .*integer.*, got 'many'"),
        ({"max_num_seqs": 0}, "max_num_seqs: .*greater than or equal to 1, got 0"),
        ({"temperature": 1}, "temperature: Extra inputs are not permitted, got 1"),
        ({"policy": "x"}, "policy"),
        ({"draft": None, "target": None}, "no model is given"),
        ({"min_replicas": 3, "max_replicas": 2}, "at least min_replicas=3, got 2"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        app_builder({**TEXT, **changed})
    assert "\n" not in str(caught.value)


def test_the_deployment() -> None:
    fixed = options({**TEXT, "min_replicas": 2, "drain_seconds": 7})
    assert fixed["num_replicas"] == 2
    assert fixed["max_ongoing_requests"] == 4 + 3
    assert fixed["graceful_shutdown_timeout_s"] == 7
    assert fixed["ray_actor_options"]["num_gpus"] == 0
    scaling = options({**TEXT, "max_replicas": 5})["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (
        1,
        5,
        4,
    )


def options(arguments: dict[str, Any]) -> dict[str, Any]:
    """What Serve is asked for."""
    built = app_builder(arguments)
    assert isinstance(built, Application)
    deployment = built._bound_deployment
    config = deployment._deployment_config
    return {
        "num_replicas": config.num_replicas,
        "max_ongoing_requests": config.max_ongoing_requests,
        "graceful_shutdown_timeout_s": config.graceful_shutdown_timeout_s,
        "autoscaling_config": config.autoscaling_config,
        "ray_actor_options": deployment.ray_actor_options,
    }
