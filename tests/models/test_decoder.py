"""The decoder computes what transformers computes, however its tokens are packed into passes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.loader import load_language_model
from rsd_kernels.linear.weight import LinearWeight
from tests.models.checkpoints import ARCHITECTURES, make_model, save
from tests.models.driver import Driver

TOLERANCE = 1e-4


Pair = tuple[Any, LanguageModel]


def random_tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 61, (length,), generator=generator).tolist()


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A transformers model and ours, loaded from the folder it saved."""
    theirs = make_model(request.param)
    folder = save(theirs, tmp_path_factory.mktemp(request.param))
    return theirs, load_language_model(folder, max_rows=64)


def expected(theirs: Any, tokens: list[int]) -> Tensor:  # [len(tokens), V]
    with torch.no_grad():
        logits: Tensor = theirs(torch.tensor([tokens])).logits[0]
        return logits


def assert_close(actual: Tensor, wanted: Tensor) -> None:
    assert actual.shape == wanted.shape
    assert torch.isfinite(actual).all()
    assert (actual - wanted).abs().max() <= TOLERANCE


def test_every_weight_knows_the_next(pair: Pair) -> None:
    _, model = pair
    order = [
        weight
        for layer in model.decoder.weights.layers
        for weight in (layer.qkv, layer.o, layer.gate_up, layer.down)
        if isinstance(weight, LinearWeight)
    ]
    assert len(order) == 4 * model.config.num_layers
    following = [weight.next_matrix for weight in order]
    assert following[-1] is None
    wanted = [weight.matrix for weight in order[1:]]
    for place, (known, matrix) in enumerate(zip(following, wanted, strict=False)):
        # Attention has fetched all of these small ones of gate and up.
        assert known is (None if place % 4 == 1 else matrix)


def test_token_by_token(pair: Pair) -> None:
    theirs, model = pair
    tokens, driver = random_tokens(23, 1), Driver(model)
    logits = torch.cat([driver.run((2, [token])) for token in tokens])
    assert_close(logits, expected(theirs, tokens))


@pytest.mark.parametrize("cuts", [(23,), (1, 22), (11, 23), (4, 5, 6, 17, 23), (22, 23)])
def test_chunks(pair: Pair, cuts: tuple[int, ...]) -> None:
    theirs, model = pair
    tokens, driver = random_tokens(23, 1), Driver(model)
    wanted = expected(theirs, tokens)
    for start, stop in zip((0, *cuts), cuts, strict=False):
        assert_close(driver.run((0, tokens[start:stop])), wanted[stop - 1 : stop])


def test_ragged_batch(pair: Pair) -> None:
    """Decode rows of several slots, chunks of others, in one pass and in any order of slots."""
    theirs, model = pair
    rows = [random_tokens(40, seed) for seed in range(4)]
    wanted, driver = [expected(theirs, row) for row in rows], Driver(model)
    passes = [
        {1: 9, 3: 1},
        {3: 1, 0: 1, 1: 12},
        {2: 3, 1: 1, 0: 1, 3: 1},
        {3: 1, 1: 1, 0: 1, 2: 1},
        {1: 1, 0: 14, 2: 1, 3: 6},
        {0: 1, 1: 1, 2: 1, 3: 1},
    ]
    for new in passes:
        starts = {slot: driver.kv_len[slot] for slot in new}
        chunks = [(slot, rows[slot][starts[slot] : starts[slot] + n]) for slot, n in new.items()]
        logits = driver.run(*chunks)
        for row, slot in zip(logits, new, strict=True):
            assert_close(row, wanted[slot][driver.kv_len[slot] - 1])


def test_rollback_and_freed_pages(pair: Pair) -> None:
    """What was rejected or freed leaves no trace, though its memory now holds NaN."""
    theirs, model = pair
    driver, first, second = Driver(model), random_tokens(18, 5), random_tokens(30, 6)
    driver.run((0, first), (1, second))
    driver.roll_back(0, kv_len=7)
    tokens = first[:7] + random_tokens(12, 7)
    wanted = expected(theirs, tokens)
    assert_close(driver.run((0, tokens[7:13])), wanted[12:13])
    driver.roll_back(1)
    more = random_tokens(3, 8)
    logits = driver.run((0, tokens[13:14]), (1, more))
    assert_close(logits[:1], wanted[13:14])
    assert_close(logits[1:], expected(theirs, more)[-1:])


@pytest.mark.parametrize("tokens_per_page", [1, 3, 16, 64])
def test_page_sizes(pair: Pair, tokens_per_page: int) -> None:
    theirs, model = pair
    driver, tokens = Driver(model, tokens_per_page), random_tokens(29, 2)
    wanted = expected(theirs, tokens)
    assert_close(driver.run((1, tokens[:20])), wanted[19:20])
    for i in range(20, 29):
        assert_close(driver.run((1, tokens[i : i + 1])), wanted[i : i + 1])


@pytest.mark.parametrize("context", [24, 25])
def test_the_context_chooses_the_factors_of_longrope(
    context: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers chooses anew for every text, by whether it is longer than the original."""
    theirs = make_model("phi4-mini-long", original_max_position_embeddings=24)
    loaded = load_language_model(save(theirs, tmp_path), max_rows=64)
    config, weights = loaded.config, loaded.decoder.weights
    with caplog.at_level(logging.INFO, "rsd_engine"):
        decoder = Decoder(config, weights, max_rows=64, max_positions=context)
    assert f"the {'short' if context == 24 else 'long'} factors, for a context" in caplog.text
    tokens = random_tokens(context, 1)
    logits = Driver(LanguageModel(decoder, loaded.lm_head)).run((0, tokens))
    assert_close(logits, expected(theirs, tokens)[-1:])
