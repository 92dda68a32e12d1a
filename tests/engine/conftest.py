"""The tiny models and an engine of them, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rsd_engine import Engine, Threshold
from tests.tiny_models import TinyModels, make_tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return make_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def other_prm(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """The same draft and target, and a PRM with a tokenizer of its own."""
    return make_tiny_models(tmp_path_factory.mktemp("other"), own_prm_tokenizer=True)


@pytest.fixture(scope="session")
def shared_engine(tiny: TinyModels) -> Iterator[Engine]:
    """One engine for tests that leave it as they found it; see `engine`."""
    with Engine(**tiny.sources(), policy=Threshold(0.5), max_num_seqs=4, device="cpu") as built:
        yield built


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """The shared engine, which finds nothing of earlier tests; all pages are back when it ends."""
    shared_engine.reset_prefix_cache()
    yield shared_engine
    core = shared_engine.parts.core
    assert not core.has_work
    assert int(core.state.num_free) == core.state.free_pages.shape[0]
