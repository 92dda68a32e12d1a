"""`rsd chat` over an engine and over a server, with questions from a pipe."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from rsd_engine import Engine, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate
from tests.cli.conftest import Rsd
from tests.client.fake_server import FakeServer
from tests.server.conftest import LiveServer
from tests.tiny_models import TinyModels

QUESTIONS = [problem.question for problem in generate(3, "test", 2)]
GREEDY = SamplingParams(temperature=0.0)


def two_turns(engine: Engine) -> list[str]:
    """The answers of the engine itself to the questions, the second after the first."""
    messages: list[dict[str, str]] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        [result] = engine.chat(messages, GREEDY, use_tqdm=False)
        messages.append({"role": "assistant", "content": result.outputs[0].text})
    return [message["content"] for message in messages[1::2]]


def ended(answers: list[str]) -> str:
    """As the chat prints them: each ends its line."""
    return "".join(answer if answer.endswith("\n") else answer + "\n" for answer in answers)


def test_a_server_answers_as_its_engine_does(rsd: Rsd, live: LiveServer) -> None:
    result = rsd(
        "chat", f"--url={live.url}/v1", "--set", "temperature=0", input="\n".join(QUESTIONS)
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == ended(two_turns(live.service.engine.engine))
    assert result.stderr.count("draft steps accepted") == 2


def test_steps_and_errors_of_a_server(rsd: Rsd, live: LiveServer) -> None:
    lines = [
        "/steps on", "/set temperature 0", "/set threshold 2", QUESTIONS[0],
        "/set allowed_token_ids [99999999]", QUESTIONS[1], "/show",
    ]  # fmt: skip
    result = rsd("chat", f"--url={live.url}/v1", input="\n".join(lines).encode() + b"\n\n")
    assert result.exit_code == 1, "a question failed"
    shown = result.stdout.splitlines()
    assert {line.split()[0] for line in shown} == {"[rejected", "[target]"}
    assert [line.split()[0] for line in shown[:2]] == ["[rejected", "[target]"]
    assert "0 of " in result.stderr and "0% by the draft" in result.stderr
    assert "error: the server answered 400: " in result.stderr
    assert ", 1 turn\n" in result.stderr


def test_a_server_that_knows_no_rsd(rsd: Rsd, fake: FakeServer) -> None:
    question = json.dumps({"first": 0.0, "gap": 0.0, "chunks": 3, "tokens": 5})
    lines = ["/set top_k 3", question, "/set threshold 0.5", json.dumps({"status": 503})]
    result = rsd("chat", f"--url={fake.url}", "--show-steps", input="\n".join(lines))
    assert result.exit_code == 1 and result.stdout == "ababab\n"
    facts, refused, failed = result.stderr.splitlines()
    assert facts.startswith("5 tokens in ") and "draft" not in facts
    assert refused == "error: policy is RSD's, and this server is no `rsd serve`"
    assert failed == "error: the server answered 503: no room here"
    assert fake.bodies[0]["top_k"] == 3 and "rsd" not in fake.bodies[0]
    result = rsd("chat", f"--url={fake.url}", "--set=mode=draft", input="")
    assert result.exit_code == 2 and "mode is RSD's" in result.stderr


def test_an_engine_with_a_config_file(
    rsd: Rsd, live: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "close", lambda engine: None)  # that of the other tests
    monkeypatch.setattr(
        "rsd_engine.cli.chat.run.make_engine", lambda *_, **more: live.service.engine.engine
    )
    config = tmp_path / "rsd.toml"
    config.write_text(
        f'[engine]\ndraft = "{checkpoint_dir("draft")}"\n[sampling]\ntemperature = 0\n'
        'policy = "threshold:0.7"\n'
    )
    result = rsd("chat", f"--config={config}", input="\n".join(QUESTIONS))
    assert result.exit_code == 0, result.output
    assert result.stdout == ended(two_turns(live.service.engine.engine))


def test_models_without_a_template_continue_the_text(
    rsd: Rsd, tiny: TinyModels, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny.target, tmp_path / "target")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    prompt = "one two"
    with Engine(target=folder, device="cpu") as engine:
        params = SamplingParams(temperature=0.0, max_tokens=5)
        [first] = engine.generate(prompt, params, use_tqdm=False)
        text = f"{prompt}{first.outputs[0].text}\nthree"
        [second] = engine.generate(text, params, use_tqdm=False)
    answers = [result.outputs[0].text for result in (first, second)]
    result = rsd(
        "chat", f"--target={folder}", "--device=cpu", "--set=temperature=0",
        "--set=max_tokens=5", input=f"{prompt}\nthree\n",
    )  # fmt: skip
    assert result.stdout == ended(answers)
    assert "no chat template: they continue the text" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url=http://127.0.0.1:1/v1", "--draft=x"], "--draft is for models that are loaded"),
        (["--url=http://127.0.0.1:1/v1", "--no-steps"], "--no-steps is for models"),
        (["--model=x", "--target=y"], "--model is the name of a server's model"),
        (["--target=nowhere", "--set=top_p=7"], "--set top_p=7: top_p must be in (0, 1], got 7"),
        ([], "no model is given"),
    ],
)
def test_wrong_use(rsd: Rsd, arguments: list[str], said: str) -> None:
    result = rsd("chat", *arguments, input="")
    assert result.exit_code == 2 and said in result.stderr


def test_settings_that_the_models_do_not_allow(rsd: Rsd, tiny: TinyModels) -> None:
    result = rsd("chat", f"--target={tiny.target}", "--set=mode=rsd", input="Hello")
    assert result.exit_code == 2 and "mode" in result.stderr and "--set" in result.stderr


def test_no_server_and_no_client(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    result = rsd("chat", "--url=http://127.0.0.1:1/v1", input="")
    assert result.exit_code == 1 and result.stderr.startswith("error: cannot reach the server")
    monkeypatch.setitem(sys.modules, "openai", None)
    for name in [name for name in sys.modules if name.startswith("rsd_engine.client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "rsd_engine.cli.chat.server_backend")
    result = rsd("chat", "--url=http://127.0.0.1:1/v1", input="")
    assert result.exit_code == 2 and "install rsd-engine[client]" in result.stderr


def test_stdin_must_be_text(rsd: Rsd, live: LiveServer) -> None:
    result = rsd("chat", f"--url={live.url}/v1", input=b"/show\n\xff\n")
    assert result.exit_code == 2 and "stdin, line 2, is not UTF-8 text" in result.stderr
