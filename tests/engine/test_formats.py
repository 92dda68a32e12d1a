"""Engines from every way weights come to disk decide as the one from plain safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rsd_engine import Engine, SamplingParams, Threshold
from tests.engine.harness.runs import PROMPTS, decisions, generate
from tests.engine.test_fidelity import same_or_tie, transformers_tokens
from tests.models.checkpoints import make_model
from tests.models.test_loading import weights_of, write_shards
from tests.models.test_lora import make_adapter
from tests.steps.toy_tokenizers import smollm_like
from tests.tiny_models import TinyModels

PARAMS = SamplingParams(temperature=1.0, seed=4, max_tokens=30, policy=Threshold(0.5))


def test_shards_and_bin_files_in_one_engine(
    engine: Engine, tiny: TinyModels, tmp_path: Path
) -> None:
    """The PRM as a .bin file, as Skywork's comes."""
    copies = TinyModels(tmp_path / "draft", tmp_path / "target", tmp_path / "prm")
    for source in (tiny.draft, tiny.target, tiny.prm):
        shutil.copytree(source, tmp_path / source.name)
    write_shards(copies.draft, weights_of(copies.draft), "pytorch_model.bin", torch.save)
    write_shards(copies.target, weights_of(copies.target), "model.safetensors", save_file)
    torch.save(weights_of(copies.prm), copies.prm / "pytorch_model.bin")
    with Engine(**copies.sources(), max_num_seqs=4, device="cpu") as other:
        found = generate(other, PROMPTS, PARAMS)
    wanted = generate(engine, PROMPTS, PARAMS)
    assert [decisions(result) for result in found] == [decisions(result) for result in wanted]
    assert any(step.rejected for result in found for step in result.outputs[0].steps)


def test_a_lora_adapter_as_the_target(engine: Engine, tiny: TinyModels, tmp_path: Path) -> None:
    """One that adds nothing: the base's tokens with the base's tokenizer; and one that does."""
    wanted = [decisions(result) for result in generate(engine, PROMPTS, PARAMS)]
    for strength in (0.0, 5.0):
        adapter = tmp_path / f"adapter-{strength}"
        make_adapter(adapter, tiny.target, strength=strength)
        sources = tiny.sources() | {"target": adapter}
        with Engine(**sources, max_num_seqs=4, device="cpu") as other:
            found = [decisions(result) for result in generate(other, PROMPTS, PARAMS)]
        assert (found == wanted) == (strength == 0)


def test_a_gguf_file(tmp_path: Path) -> None:
    """Weights, tokenizer and end-of-text come out of the one file."""
    pytest.importorskip("gguf")
    from tests.models.gguf_files import write_gguf

    tokenizer = smollm_like()
    model = make_model("llama2", vocab_size=tokenizer.get_vocab_size())
    path = write_gguf(tmp_path / "tiny.gguf", model, tokenizer=tokenizer)
    params = SamplingParams(temperature=0.0, max_tokens=30)
    with Engine(target=path, step_delimiters=None, device="cpu") as engine:
        results = generate(engine, ["one 12", "two\n\n", "x"], params)
        for result in results:
            wanted = transformers_tokens(model, list(result.prompt_token_ids), 30, eos=[0])
            assert same_or_tie(engine, result, wanted)
    assert len({result.outputs[0].token_ids for result in results}) > 1
