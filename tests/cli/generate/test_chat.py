"""`rsd generate` with chat templates of one's own, tools, and questions beside messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.cli.config_file import ENGINE, GENERATE
from rsd_engine.cli.generate.options import GenerateOptions
from tests.cli.conftest import Rsd, read_jsonl, write_jsonl
from tests.engine.chat.templates import CHATML, STRICT
from tests.tiny_models import TinyModels

USER = {"role": "user", "content": "the sum"}
KWARGS = '{"enable_thinking": false}'
TOOLS = [{"type": "function", "function": {"name": "add"}}]
# What the config file calls otherwise, because a shell writes it otherwise.
OTHER_NAMES = {"kv_cache_memory_bytes": "kv_cache_memory", "step_delimiters": "step_delimiter"}


@pytest.fixture(scope="module")
def engine(tiny: TinyModels) -> Engine:
    return Engine(**tiny.sources(), policy=Threshold(0.4), max_num_seqs=2, device="cpu")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {"template": tmp_path / "chat.jinja", "tools": tmp_path / "tools.json"}
    found["template"].write_text(CHATML)
    found["tools"].write_text(json.dumps(TOOLS))
    return found


def test_whatever_a_config_file_says_a_flag_says_too() -> None:
    told = {field.name for field in dataclasses.fields(GenerateOptions)}
    sampling = {field.name for field in dataclasses.fields(SamplingParams)}
    wanted = {OTHER_NAMES.get(name, name) for name in {*ENGINE, *GENERATE, *sampling}}
    assert wanted <= told


def test_one_prompt(
    rsd: Rsd, model_args: list[str], engine: Engine, files: dict[str, Path]
) -> None:
    result = rsd(
        "generate", "the sum", *model_args, "--policy=threshold:0.4", "--seed=3", "--json",
        "--temperature=1", "--max-tokens=30", "--min-tokens=20", "--stop-token-id=70",
        "--stop-token-id=71", "--ignore-eos", "--include-stop-str-in-output",
        "--no-skip-special-tokens", "--logprobs=2", "--prompt-logprobs=1",
        "--truncate-prompt-tokens=9", "--presence-penalty=0.5", "--frequency-penalty=0.25",
        '--logit-bias={"65": -2.5}', "--bad-word=b", "--allowed-token-id=65",
        *(f"--allowed-token-id={token}" for token in range(66, 120)),
        "--chat-template", files["template"],
        "--chat-template-kwargs", KWARGS, "--tools", files["tools"],
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    params = SamplingParams(
        seed=3,
        max_tokens=30,
        min_tokens=20,
        stop_token_ids=[70, 71],
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=2,
        prompt_logprobs=1,
        truncate_prompt_tokens=9,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={65: -2.5},
        bad_words=["b"],
        allowed_token_ids=range(65, 120),
    )
    [expected] = engine.chat(
        [USER],
        params,
        use_tqdm=False,
        chat_template=CHATML,
        chat_template_kwargs={"enable_thinking": False},
        tools=TOOLS,
    )
    record = json.loads(result.stdout)
    assert len(record["prompt_logprobs"]) == len(expected.prompt_token_ids) == 9
    [output] = record["outputs"]
    assert output["token_ids"] == list(expected.outputs[0].token_ids)
    assert output["text"] == expected.outputs[0].text
    assert len(output["logprobs"]) == len(output["token_ids"])


def test_a_file_and_a_config(
    rsd: Rsd, model_args: list[str], engine: Engine, files: dict[str, Path], tmp_path: Path
) -> None:
    config = tmp_path / "rsd.toml"
    config.write_text(
        f"[generate]\nchat_template = '{files['template']}'\n"
        "chat_template_kwargs = { enable_thinking = false }\n"
        "[sampling]\ntemperature = 0.0\nmax_tokens = 8\n"
    )
    parts = [{"type": "text", "text": "the sum"}]
    source = write_jsonl(
        tmp_path / "in.jsonl",
        [
            {"messages": [USER], "question": "two"},
            {"question": "the sum", "tools": TOOLS},
            {"messages": [{"role": "user", "content": parts}]},
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            {"messages": [USER], "tools": "add"},
        ],
    )
    output = tmp_path / "out.jsonl"
    result = rsd(
        "generate", *model_args, "--policy=threshold:0.4", "--config", config, "-i", source,
        "-o", output,
    )  # fmt: skip
    assert result.exit_code == 1
    records = {record["line"]: record for record in read_jsonl(output)}
    assert "got one of type 'image_url'" in records[4]["error"]
    assert "tools must be a list" in records[5]["error"]
    options: dict[str, Any] = {
        "chat_template": CHATML,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    others: list[dict[str, Any]] = [{"question": "two"}, {"tools": TOOLS}, {}]
    for line, more in enumerate(others, start=1):
        params = SamplingParams(temperature=0.0, max_tokens=8)
        [expected] = engine.chat([USER], params, use_tqdm=False, **options, **more)
        [found] = records[line]["outputs"]
        assert found["token_ids"] == list(expected.outputs[0].token_ids)
        rewards = [step.reward for step in expected.outputs[0].steps]
        assert [step["reward"] for step in found["steps"]] == pytest.approx(rewards, abs=1e-3)


def test_another_template_is_another_run(
    rsd: Rsd, tiny: TinyModels, files: dict[str, Path], tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the sum"}])
    output = tmp_path / "out.jsonl"
    args = [
        "generate", f"--target={tiny.target}", "-i", source, "-o", output, "--max-tokens=3",
        "--chat-template", files["template"],
    ]  # fmt: skip
    assert rsd(*args).exit_code == 0
    assert rsd(*args).exit_code == 0
    result = rsd(*args, "--chat-template-kwargs", KWARGS)
    assert result.exit_code == 2
    assert "written with other models or settings" in result.stderr


def test_a_template_that_fails_fails_its_lines_alone(
    rsd: Rsd, tiny: TinyModels, tmp_path: Path
) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(STRICT)
    wrong = {"messages": [USER, USER]}
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the sum"}, wrong, {"prompt": "a"}])
    result = rsd(
        "generate", f"--target={tiny.target}", "-i", source, "--max-tokens=3", "--chat-template",
        template,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "line 2: the chat template cannot use these messages" in result.stderr
    records = {r["line"]: r for r in map(json.loads, result.stdout.splitlines())}
    assert ["error" in records[line] for line in (1, 2, 3)] == [False, True, False]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--chat-template=/no/such/file"], "cannot read chat template /no/such/file: No such"),
        (["--tools=/no/such/file"], "cannot read tools /no/such/file: No such file"),
        (["--chat-template-kwargs={"], "--chat-template-kwargs is not JSON"),
        (["--chat-template-kwargs=[1]"], "--chat-template-kwargs must be a JSON object"),
        (["--logit-bias=5"], "--logit-bias must be a JSON object"),
        (["--stop-token-id=-1"], "stop_token_ids must be in [0, 2147483647], got -1"),
        (["--logprobs=1000"], "logprobs must be in"),
    ],
)
def test_errors_are_one_line(rsd: Rsd, args: list[str], message: str) -> None:
    result = rsd("generate", "hi", "--target=T", *args)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_tools_that_are_no_list(rsd: Rsd, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    for text, message in (("{}", "must hold a JSON list of tools"), ("{", "is not JSON")):
        path.write_text(text)
        result = rsd("generate", "hi", "--target=T", "--tools", path)
        assert result.exit_code == 2
        assert message in result.stderr
