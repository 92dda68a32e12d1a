"""The tokenizer of a folder: checked before it is built, never by code that lies there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate
from rsd_engine.models.checkpoints import tokenizer_folder
from rsd_engine.models.checkpoints.open import load_tokenizer, open_checkpoint
from tests.tiny_models import EOS, tiny_tokenizer, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of model type qwen2 with its tokenizer, and no weights."""
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tokenizer(tmp_path, tiny_tokenizer(), 64)
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_tokenizer(open_checkpoint(folder))
    message = str(error.value)
    assert "\n" not in message and "has no readable tokenizer" in message
    return message


@pytest.mark.parametrize("token", [2**31 - 1, 50_000_000])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda c, i: c["model"]["vocab"].update(x=i)),
        ("tokenizer.json", lambda c, i: c["added_tokens"][-1].update(id=i)),
        ("tokenizer_config.json", lambda c, i: c.update(added_tokens_decoder={str(i): {}})),
        ("added_tokens.json", lambda c, i: c.update({"<x>": i})),
        ("vocab.json", lambda c, i: c.update({"<x>": i})),
    ],
)
def test_huge_ids(folder: Path, name: str, change: Callable[..., object], token: int) -> None:
    edit(folder / name, lambda content: change(content, token))
    assert f"{name}: " in (message := refusal(folder)) and "id in [0, 1048575]" in message


@pytest.mark.parametrize(
    "change", [{"model": 5}, {"decoder": {"type": "Magic"}}, {"added_tokens": 1}]
)
def test_broken_parts(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / "tokenizer.json", lambda content: content.update(change))
    refusal(folder)


def test_a_panic_of_the_library_is_an_error_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def panic(folder: Path) -> None:
        raise PanicException("index out of bounds:\n the len is 0")

    monkeypatch.setattr("rsd_engine.models.checkpoints.open.folder_tokenizer", panic)
    assert refusal(folder).endswith("index out of bounds: the len is 0")


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)


@pytest.mark.usefixtures("nobody_answers")
@pytest.mark.parametrize("vocabulary", [None, "vocab.json", "qwen.tiktoken"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("old", [False, True])
def test_remote_code_is_never_run(
    folder: Path, vocabulary: str | None, file: str, old: bool
) -> None:
    (folder / "tokenizer.json").unlink()
    if vocabulary is not None:
        (folder / vocabulary).write_text("{}")
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    auto_map: Any = {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Config"}
    if old:
        auto_map = ["own.Own", None] if file == "tokenizer_config.json" else {"AutoConfig": "own.C"}
    edit(folder / file, lambda content: content.update(auto_map=auto_map, model_type="own"))
    message = refusal(folder)
    if file == "tokenizer_config.json":
        assert "code for its tokenizer" in message and "is never run" in message
    assert not (folder / "ran").exists()


@pytest.mark.usefixtures("nobody_answers")
def test_code_beside_a_tokenizer_json_is_left_alone(folder: Path) -> None:
    auto_map = {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Config"}
    for name in ("tokenizer_config.json", "config.json"):
        edit(folder / name, lambda content: content.update(auto_map=auto_map))
    assert load_tokenizer(open_checkpoint(folder)).eos_token == EOS


@pytest.mark.parametrize(
    ("file", "packages"),
    [("tokenizer.model", "sentencepiece protobuf"), ("qwen.tiktoken", "tiktoken")],
)
def test_packages_that_a_conversion_needs(
    folder: Path, file: str, packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / file).write_bytes(b"\x0a\x00")
    monkeypatch.setattr(tokenizer_folder, "find_spec", lambda name: None)
    message = refusal(folder)
    assert file in message and message.endswith(f"not installed: pip install {packages}")


def test_one_missing_package_is_named_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x00")
    present = {"sentencepiece": object()}
    monkeypatch.setattr(tokenizer_folder, "find_spec", present.get)
    assert refusal(folder).endswith("not installed: pip install protobuf")


def splits_digits(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    digits, letters = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_where_auto_tokenizer_differs_the_log_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers 5 gives every folder of model type qwen2 the words of Qwen2."""
    with caplog.at_level(logging.WARNING, "rsd_engine"):
        load_tokenizer(open_checkpoint(folder))
    assert not caplog.records
    splits_digits(folder)
    with caplog.at_level(logging.WARNING, "rsd_engine"):
        ours = load_tokenizer(open_checkpoint(folder))
    assert "reads it as Qwen2Tokenizer" in caplog.text
    text = "a.\n\nb"
    assert ours.encode(text) != AutoTokenizer.from_pretrained(folder).encode(text)


@pytest.mark.parametrize("model_type", ["llama", "none of transformers"])
def test_where_it_does_not_differ_the_log_is_silent(
    folder: Path, caplog: pytest.LogCaptureFixture, model_type: str
) -> None:
    splits_digits(folder)
    edit(folder / "config.json", lambda content: content.update(model_type=model_type))
    with caplog.at_level(logging.WARNING, "rsd_engine"):
        load_tokenizer(open_checkpoint(folder))
    assert not caplog.records


@pytest.mark.parametrize("role", ["draft", "target", "prm"])
def test_the_demo_family_has_the_same_tokens_through_auto_tokenizer(
    role: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint_dir(role)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "rsd_engine"):
        ours = load_tokenizer(open_checkpoint(folder))
    assert not caplog.records
    theirs = AutoTokenizer.from_pretrained(folder)
    for problem in generate(3, "test", 20):
        text = f"{problem.question}\n{problem.solution}"
        assert ours.encode(text) == theirs.encode(text)
