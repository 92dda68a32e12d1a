"""Random models of real shapes: what the engine makes of them."""

from __future__ import annotations

import pytest
import torch

from bench.lib.random_models import TRIPLES, RandomCheckpoint, random_tokenizer, tiny_config
from rsd_engine import Constant, Engine, SamplingParams
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.loader import load_language_model
from rsd_engine.steps.vocabulary import read_vocabulary
from tests.plain_weights import plain

CPU = torch.device("cpu")


def test_the_tokenizer_has_as_many_ids_as_asked_for() -> None:
    vocabulary = read_vocabulary(random_tokenizer(300))
    assert vocabulary.num_tokens == 300
    assert len(vocabulary.special_text) == 4
    ordinary = [data for i, data in enumerate(vocabulary.token_bytes) if i < 296]
    assert len(set(ordinary)) == 296 and all(ordinary)
    threes = read_vocabulary(random_tokenizer(256 + 4 + 256 * 256 + 5)).token_bytes
    assert sorted(map(len, threes[256:-4]))[-6:] == [2, 3, 3, 3, 3, 3]
    with pytest.raises(ValueError, match="num_tokens must be at least 260, got 259"):
        random_tokenizer(259)


def test_the_same_seed_gives_the_same_weights() -> None:
    def embedding(seed: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        checkpoint = RandomCheckpoint("x", tiny_config(32), CPU, dtype, num_tokens=300, seed=seed)
        return plain(load_language_model(checkpoint, max_rows=4).decoder.weights.embedding)

    assert torch.equal(embedding(1), embedding(1))
    assert not torch.equal(embedding(1), embedding(2))
    assert embedding(1).std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_untied_and_prm_heads_are_there() -> None:
    raw = tiny_config(32) | {"tie_word_embeddings": False}
    names = RandomCheckpoint("x", raw, CPU, num_tokens=300, seed=1).tensors()
    assert names["lm_head.weight"].shape == (320, 32)
    raw = tiny_config(32, "Qwen2ForProcessRewardModel")
    names = RandomCheckpoint("x", raw, CPU, num_tokens=300, seed=1).tensors()
    assert names["score.2.weight"].shape == (2, 32) and "lm_head.weight" not in names


def test_an_engine_runs_them() -> None:
    checkpoints = TRIPLES["tiny"].checkpoints(CPU, None, 512)
    with Engine(*checkpoints, device="cpu", max_num_seqs=2, max_model_len=128) as engine:
        params = SamplingParams(
            temperature=0.0, max_tokens=24, max_step_tokens=6, ignore_eos=True,
            policy=Constant(0.5), seed=1,
        )  # fmt: skip
        results = engine.generate([[1, 2, 3], [4, 5]], params, use_tqdm=False)
    assert [len(r.outputs[0].token_ids) for r in results] == [24, 24]
    rewards = [s.reward for r in results for s in r.outputs[0].steps if s.reward is not None]
    assert all(0 < reward < 1 for reward in rewards)


def test_every_triple_has_one_draft_target_and_prm() -> None:
    for triple in TRIPLES.values():
        configs = [ModelConfig.from_dict(raw) for raw in (triple.draft, triple.target, triple.prm)]
        assert [config.is_reward_model for config in configs] == [False, False, True]
        assert all(config.vocab_size >= triple.num_tokens for config in configs)
