"""An engine with all three models here, and a server around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rsd_engine import Engine, Threshold
from rsd_engine.engine.model_sources import ModelSource
from tests.engine.remote.serving import listening, own_app
from tests.page_checks import check_integrity
from tests.tiny_models import TinyModels, make_tiny_models

POLICY = Threshold(0.5)


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Models that like newlines: some of their steps end in other tokens than text has there."""
    return make_tiny_models(tmp_path_factory.mktemp("remote"), seed=41)


@pytest.fixture(scope="package")
def local(models: TinyModels) -> Iterator[Engine]:
    """What results must be equal to; servers run on it too."""
    with Engine(**models.sources(), policy=POLICY, max_num_seqs=4, device="cpu") as built:
        yield built


@pytest.fixture(scope="package")
def url(local: Engine) -> Iterator[str]:
    """Of `rsd serve` around it."""
    with own_app(local) as app, listening(app) as found:
        yield found


@contextmanager
def remote_engine(draft: ModelSource, target: ModelSource, prm: ModelSource) -> Iterator[Engine]:
    """An engine on servers; it holds nothing when the test ends."""
    with Engine(draft, target, prm, policy=POLICY, max_num_seqs=4, device="cpu") as engine:
        yield engine
        assert_idle(engine)


def assert_idle(engine: Engine) -> None:
    core = engine.parts.core
    assert not core.has_work and core.slot_keys == [None] * core.state.num_slots
    assert int(core.state.num_free) == core.state.free_pages.shape[0]
    check_integrity(core.state, core.loop.tokens_per_page)
    assert engine.check_integrity() == []
