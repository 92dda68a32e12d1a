"""Engines of models in memory: shared weights, used again, made anew, and freed."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rsd_engine import Engine
from rsd_engine.demo import checkpoint_dir
from rsd_engine.engine.rewards.merged import is_merged
from rsd_engine.integrations.transformers import generate
from rsd_engine.integrations.transformers.decoding import ENGINES
from rsd_engine.integrations.transformers.engines import Engines, Models
from rsd_engine.integrations.transformers.module_checkpoint import ModuleCheckpoint
from rsd_engine.models.loader import read_language_config
from tests.integrations.memory_models import load_prm, load_writer
from tests.plain_weights import matrix_of, plain

OPTIONS = {"max_num_seqs": 1, "max_model_len": 64}
DRAFT, PRM = checkpoint_dir("draft"), checkpoint_dir("prm")


def models(target: Any) -> Models:
    """Draft and PRM from folders, which is quicker."""
    return Models(DRAFT, target, PRM)


def decode(target: Any, ids: Any, **more: Any) -> Any:
    """As the target writes alone: every step of the draft is rejected."""
    own = {"draft_model": DRAFT, "prm": PRM, "threshold": 2.0, "engine_options": OPTIONS}
    return generate(target, torch.tensor([ids]), **{**own, "max_new_tokens": 12, **more})


def test_an_engine_is_used_again_until_a_weight_changes() -> None:
    engines, target = Engines(), load_writer("target")
    first = engines.find(models(target), OPTIONS)
    assert engines.find(models(target), dict(OPTIONS)) is first
    with torch.no_grad():
        target.model.layers[0].self_attn.q_proj.weight.mul_(1.01)
    second = engines.find(models(target), OPTIONS)
    assert second is not first
    with pytest.raises(ValueError, match="the engine is closed"):
        _ = first.parts
    third = engines.find(models(target), {**OPTIONS, "max_num_seqs": 2})
    assert third is not second
    assert len(engines) == 1


def test_outputs_are_those_of_the_weights_as_they_are() -> None:
    target, ids = load_writer("target"), [1, 5, 9, 30]
    plain = partial(target.generate, torch.tensor([ids]), max_new_tokens=12)
    before = decode(target, ids)
    assert torch.equal(before, plain())
    with torch.no_grad():
        for layer in target.model.layers:
            layer.self_attn.v_proj.weight.neg_()
    after = decode(target, ids)
    assert torch.equal(after, plain())
    assert not torch.equal(after, before)


def test_engines_go_with_their_models() -> None:
    target, draft, prm = load_writer("target"), load_writer("draft"), load_prm()
    engines = Engines()
    engine = weakref.ref(engines.find(Models(draft, target, prm), OPTIONS))
    module = weakref.ref(target)
    gc.collect()
    assert module() is target and engine() is not None
    del target
    gc.collect()
    assert module() is None
    assert engine() is None and len(engines) == 0


def test_generate_keeps_no_model_alive() -> None:
    target = load_writer("target")
    decode(target, [1, 5, 9])
    before, module = len(ENGINES), weakref.ref(target)
    del target
    gc.collect()
    assert module() is None
    assert len(ENGINES) == before - 1


def test_weights_that_are_used_as_stored_are_shared() -> None:
    target = load_writer("target")
    engine = Engines().find(models(target), OPTIONS)
    weights = engine.parts.models.main.model.decoder.weights
    assert plain(weights.embedding).data_ptr() == target.model.embed_tokens.weight.data_ptr()
    for ours, theirs in zip(weights.layers, target.model.layers, strict=True):
        assert matrix_of(ours.o).data_ptr() == theirs.self_attn.o_proj.weight.data_ptr()
        assert matrix_of(ours.down).data_ptr() == theirs.mlp.down_proj.weight.data_ptr()
    engine.close()
    assert torch.isfinite(target(torch.tensor([[1, 5]])).logits).all()


def test_a_model_may_be_draft_and_target() -> None:
    target = load_writer("target")
    engine = Engines().find(Models(target, target, PRM), OPTIONS)
    writers = list(engine.parts.models.writers.values())
    assert writers[0] is writers[1]
    engine.close()


def test_models_of_one_folder_need_not_be_alike() -> None:
    """A PRM that was trained in memory is none on the target's decoder, whatever it came from."""
    one, other = (ModuleCheckpoint(load_writer("target")) for _ in range(2))
    assert not is_merged(one, other, read_language_config(one), read_language_config(other))


def test_a_model_of_nowhere_needs_a_tokenizer() -> None:
    config = LlamaConfig(
        vocab_size=960, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    made: Any = LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="target: model .* pass its tokenizer"):
        Engine(DRAFT, ModuleCheckpoint(made), PRM)
    tokenizer = ModuleCheckpoint(load_writer("draft")).tokenizer()
    found = decode(made, [1, 5, 9], tokenizer=tokenizer)
    assert torch.equal(found, made.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=12))


def test_weights_on_several_devices_are_refused() -> None:
    target = load_writer("draft")
    target.model.norm.to("meta")
    with pytest.raises(ValueError, match=r"are on \['cpu', 'meta'\]; they must be on one device"):
        ModuleCheckpoint(target)


def test_the_first_call_may_be_in_inference_mode() -> None:
    """What is made there could not be written to outside, where later calls are."""
    target = load_writer("target")
    with torch.inference_mode():
        first = decode(target, [1, 5, 9, 30])
    assert torch.equal(decode(target, [1, 5, 9, 30]), first)
    with torch.inference_mode():
        loaded = load_writer("draft")
        inside = decode(loaded, [1, 5, 9, 30])
    assert torch.equal(decode(loaded, [1, 5, 9, 30]), inside)
