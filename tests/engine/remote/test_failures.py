"""Servers that fail: the request that asked ends with an error, and nothing else does."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from rsd_engine import Engine, RemoteModel, RequestOutput, SamplingParams
from rsd_engine.engine.model_sources import ModelSource
from rsd_engine.engine.remote.client import RemoteClient
from rsd_engine.engine.remote.scoring import find_scorer
from rsd_engine.engine.remote.server import RemoteServer
from rsd_engine.models.registry import reward_family
from rsd_engine.outputs import Errors
from tests.engine.failures.test_isolation import BAD, GOOD, failing
from tests.engine.harness.runs import PROMPTS, decisions, generate
from tests.engine.remote.conftest import assert_idle, remote_engine
from tests.engine.remote.fakes import Behind, vllm_app
from tests.engine.remote.serving import Troubled, listening, own_app
from tests.tiny_models import TinyModels

PARAMS = SamplingParams(temperature=0.0, max_tokens=30)
ALONE = SamplingParams(temperature=0.0, max_tokens=30, mode="target")
DRAFT = SamplingParams(temperature=0.0, max_tokens=30, mode="draft")
PATH = "/v1/completions"


def written(ids: list[int], finish: str = "length", reason: object = None) -> tuple[Any, ...]:
    """A trouble: an answer with these ids."""
    choice = {"token_ids": ids, "finish_reason": finish, "stop_reason": reason, "text": ""}
    return 200, json.dumps({"choices": [choice], "usage": {}}).encode(), {}


def status(code: int, message: str, **headers: str) -> tuple[Any, ...]:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return code, json.dumps({"error": {"message": message}}).encode(), named


@contextmanager
def troubled(
    local: Engine, models: TinyModels, **options: Any
) -> Iterator[tuple[Troubled, Engine]]:
    app = Troubled(vllm_app(Behind(local)), (PATH,))
    with listening(app) as url:
        target = RemoteModel(url, **{"max_retries": 0, "timeout": 20.0, **options})
        with remote_engine(models.draft, target, models.prm) as engine:
            yield app, engine


def error_of(result: RequestOutput) -> str:
    [output] = result.outputs
    assert output.finish_reason == "error"
    assert output.error is not None and "\n" not in output.error
    assert result.metrics.errors.remote == 1
    return output.error


FAILURES: dict[str, tuple[Any, str]] = {
    "500": (status(500, "out of memory"), r"answered 500 to /v1/completions: out of memory"),
    "400": (status(400, "too long"), r"answered 400 to /v1/completions: too long"),
    "401": (status(401, "no"), r"needs a key: set RSD_REMOTE_API_KEY"),
    "connection lost": ("drop", r"cannot be reached"),
    "beyond the vocabulary": (written([5, 10**6]), r"the id 1000000, and the vocabulary has ids"),
    "negative": (written([-1]), r"the id -1, and the vocabulary has ids below"),
    "nothing": (written([]), r"it returned no tokens"),
    "no ids": ((200, b'{"choices": [{"text": "x"}]}', {}), r"without token_ids"),
    "texts for ids": (written(["a"]), r"no list of integers"),  # type: ignore[list-item]
    "no JSON": ((200, b"<html>", {}), r"without token_ids"),
    "stopped": (written([5], "abort"), r"finish_reason 'abort'"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_one_request_ends_and_the_others_do_not(
    kind: str, local: Engine, models: TinyModels, shared: tuple[Troubled, Engine]
) -> None:
    trouble, message = FAILURES[kind]
    app, engine = shared
    app.troubles.append(trouble)
    results = generate(engine, PROMPTS[:3], ALONE)
    wanted = generate(local, PROMPTS[:3], ALONE)
    failed = [i for i, r in enumerate(results) if r.outputs[0].finish_reason == "error"]
    assert len(failed) == 1 and not app.troubles
    error = error_of(results[failed[0]])
    assert re.search(message, error), error
    for i in {0, 1, 2} - set(failed):
        assert decisions(results[i]) == decisions(wanted[i])
    assert_idle(engine)


@pytest.fixture(scope="module")
def shared(local: Engine, models: TinyModels) -> Iterator[tuple[Troubled, Engine]]:
    with troubled(local, models) as found:
        yield found


def test_an_end_without_an_id(local: Engine, shared: tuple[Troubled, Engine]) -> None:
    """Servers may leave out the id that ended the text: it is put there, or the last ends it."""
    app, engine = shared
    eos = engine.get_tokenizer().eos_token_id
    app.troubles += [written([], "stop"), written([7, 8], "stop"), written([7], "stop", 9)]
    ids = [generate(engine, PROMPTS[:1], ALONE)[0].outputs[0] for _ in range(3)]
    assert [output.token_ids for output in ids] == [(eos,), (7, 8), (7, 9)]
    assert [output.stop_reason for output in ids] == [None, 8, 9]
    assert {output.finish_reason for output in ids} == {"stop"}


def test_a_client_is_not_told_where_the_server_is(
    local: Engine, models: TinyModels, caplog: pytest.LogCaptureFixture
) -> None:
    with troubled(local, models) as (far, engine), own_app(engine) as app:
        far.troubles.append(status(500, "secret"))
        with listening(app) as url:
            body = {"prompt": "a", "temperature": 0, "rsd": {"mode": "target"}}
            answer = httpx.post(f"{url}/v1/completions", json=body)
    assert answer.status_code == 502 and answer.json()["error"]["type"] == "BadGatewayError"
    assert "secret" not in answer.text and "http" not in answer.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "trouble", [status(500, "x"), status(503, "x"), status(429, "x", retry_after="0.05"), "drop"]
)
def test_what_passes_is_tried_again(trouble: Any, local: Engine, models: TinyModels) -> None:
    with troubled(local, models, max_retries=1) as (app, engine):
        app.troubles.append(trouble)
        [result] = generate(engine, PROMPTS[:1], ALONE)
    [wanted] = generate(local, PROMPTS[:1], ALONE)
    assert decisions(result) == decisions(wanted)
    assert app.num_calls == result.metrics.target.passes + 1


def test_time_is_up(local: Engine, models: TinyModels) -> None:
    with troubled(local, models, timeout=0.3) as (app, engine):
        app.troubles.append("hang")
        [result] = generate(engine, PROMPTS[:1], ALONE)
        assert "did not answer in 0.3 seconds" in error_of(result)
        assert app.hung_up.wait(5)


def test_the_others_go_on_while_a_server_is_silent(local: Engine, models: TinyModels) -> None:
    """An abort hangs up; a wait for servers costs no CPU; requests that come meanwhile run."""
    with troubled(local, models) as (app, engine):
        app.troubles.append("hang")
        stream = engine.stream(PROMPTS[0], ALONE)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        assert app.reached.wait(5)
        started = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - started < 0.2
        results = generate(engine, PROMPTS[1:3], DRAFT)
        assert reader.is_alive()
        engine.abort(stream.request_id)
        reader.join(5)
        assert not reader.is_alive() and app.hung_up.wait(5)
        assert stream.output is not None
        assert stream.output.outputs[0].finish_reason == "abort"
    for result, wanted in zip(results, generate(local, PROMPTS[1:3], DRAFT), strict=True):
        assert decisions(result) == decisions(wanted)


def test_a_closed_engine_hangs_up(local: Engine, models: TinyModels) -> None:
    app = Troubled(vllm_app(Behind(local)), (PATH,))
    app.troubles.append("hang")
    threads = set(threading.enumerate())
    with listening(app) as url:
        engine = Engine(models.draft, url, models.prm, device="cpu")
        stream = engine.stream(PROMPTS[0], ALONE)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        assert app.reached.wait(5)
        engine.close()
        assert app.hung_up.wait(5)
        reader.join(5)
        assert not reader.is_alive()
    assert not {t for t in threading.enumerate() if t.name.startswith("rsd")} - threads


def test_a_server_that_dies(local: Engine, models: TinyModels) -> None:
    app = vllm_app(Behind(local))
    with listening(app) as url:
        target = RemoteModel(url, max_retries=0)
        engine = Engine(models.draft, target, models.prm, device="cpu", max_num_seqs=2)
        [before] = generate(engine, PROMPTS[:1], ALONE)
    assert before.outputs[0].error is None
    with engine:
        results = generate(engine, PROMPTS[:3], [ALONE, DRAFT, ALONE])
        for result in (results[0], results[2]):
            assert "cannot be reached" in error_of(result)
        assert results[1].outputs[0].error is None
        assert_idle(engine)


def test_a_prm_that_fails(local: Engine, models: TinyModels) -> None:
    app = Troubled(vllm_app(Behind(local), lambda reward: [reward]), ("/pooling",))
    with listening(app) as url:
        prm = RemoteModel(url, tokenizer=models.prm, max_retries=0)
        with remote_engine(models.draft, models.target, prm) as engine:
            app.troubles += [status(500, "no"), (200, b'{"data": []}', {})]
            results = generate(engine, PROMPTS[:3], PARAMS)
            errors = [error_of(r) for r in results if r.outputs[0].error]
    assert len(errors) == 2
    assert any("the prm's server failed: RefusedError" in error for error in errors)
    assert any("without a reward" in error for error in errors)


START: dict[str, tuple[Any, str]] = {
    "nobody there": (None, r"target: http://.* cannot be reached"),
    "needs a key": (status(401, "Unauthorized"), r"target: .* needs a key: set RSD_REMOTE_API"),
    "no models": ((200, b"{}", {}), r"target: .* has no /v1/models as OpenAI's servers have"),
    "another kind": (
        (200, b'{"data": [{"id": "m", "owned_by": "me"}]}', {}),
        r"target: .* does not tell what it is; name it with server=, one of rsd, vllm, sglang",
    ),
    "another model": (
        (200, b'{"data": [{"id": "m", "owned_by": "vllm"}]}', {}),
        r"target: .* does not serve big; it has \['m'\]",
    ),
    "a short context": (
        (200, b'{"data": [{"id": "big", "owned_by": "sglang", "max_model_len": 64}]}', {}),
        r"max_model_len must be in \[2, 64\], the context of draft and target, got 100",
    ),
}


@pytest.mark.parametrize("kind", START)
def test_nothing_is_loaded_where_the_server_does_not_do(kind: str, models: TinyModels) -> None:
    trouble, message = START[kind]

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"no such page"})

    app = Troubled(nothing, ("/v1/models",))
    app.troubles.append(trouble)
    with listening(app) as url:
        name = "big" if kind in ("another model", "a short context") else None
        address = "http://127.0.0.1:9" if trouble is None else url
        target = RemoteModel(address, name, max_retries=0)
        with pytest.raises(ValueError, match=message) as raised:
            Engine(models.draft, target, models.prm, device="cpu", max_model_len=100)
    assert "\n" not in str(raised.value)


WRONG: dict[str, tuple[dict[str, ModelSource], str]] = {
    "draft": ({"draft": "http://h:1"}, "draft is on a server"),
    "alone": ({"target": "http://h:1"}, "target is on a server, and no draft is given"),
    "no URL": ({"draft": "d", "target": "http://"}, "target: url must be http://HOST:PORT"),
    "its query": (
        {"draft": "d", "target": "http://h:1?x=2", "prm": "p"},
        "its query may have tokenizer, server, timeout, max_retries, got 'x'",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_arguments(kind: str) -> None:
    sources, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        Engine(**sources, device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": 1}, {"prompt_logprobs": 1}, {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5}, {"bad_words": ["x"]},
    ],
)  # fmt: skip
def test_what_a_server_cannot_do_for_a_step(
    changes: dict[str, Any], shared: tuple[Troubled, Engine]
) -> None:
    _, engine = shared
    [name] = changes
    with pytest.raises(ValueError, match=f"{name} cannot be used where the target is on a server"):
        generate(engine, PROMPTS[:1], SamplingParams(**changes))
    [result] = generate(engine, PROMPTS[:1], SamplingParams(mode="draft", max_tokens=3, **changes))
    assert result.outputs[0].error is None


@pytest.mark.parametrize("op", ["DRAFT.forward", "PRM.score"])
def test_an_op_that_fails_while_others_wait_for_servers(
    op: str, local: Engine, models: TinyModels, url: str
) -> None:
    """The suspects go on one at a time, also by way of servers."""
    wanted = generate(local, GOOD, PARAMS)
    with remote_engine(models.draft, url, models.prm) as engine:
        with failing(engine, op, MemoryError("no memory")):
            *good, bad = generate(engine, [*GOOD, BAD], PARAMS)
        assert engine.metrics.target.passes > 0
    assert bad.metrics.errors == Errors(op=1)
    assert [decisions(result) for result in good] == [decisions(result) for result in wanted]


@pytest.mark.parametrize(
    ("kind", "family"), [("sglang", "Math-Shepherd"), ("vllm", "ActPRM"), ("sglang", "ActPRM")]
)
def test_rewards_that_a_server_does_not_give(kind: str, family: str, url: str) -> None:
    client = RemoteClient(RemoteModel(url))
    server = RemoteServer(client, kind, "m", None)
    try:
        with pytest.raises(ValueError, match=f"{kind} does not give the rewards of {family}"):
            find_scorer(server, reward_family(family), [1, 2])
    finally:
        client.close()
