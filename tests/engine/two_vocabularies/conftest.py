"""Engines whose draft and target have different tokenizers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rsd_engine import Engine
from tests.engine.oracles.two_vocabularies import TwoVocabularies
from tests.engine.two_vocabularies.families import FAMILIES, Family
from tests.tiny_models import make_tiny_models


def _open(name: str, factory: pytest.TempPathFactory) -> Iterator[Family]:
    draft, prm = FAMILIES[name]
    folders = make_tiny_models(factory.mktemp("two"), draft_tokenizer=draft, prm_tokenizer=prm)
    two = TwoVocabularies.load(folders.draft, folders.target, folders.prm)
    with Engine(**folders.sources(), max_num_seqs=4, device="cpu") as engine:
        assert engine.parts.models.separate and engine.parts.core.loop.merges is None
        yield Family(folders, engine, two)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Family]:
    yield from _open(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def one_family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    yield from _open("PRM of nobody", tmp_path_factory)
