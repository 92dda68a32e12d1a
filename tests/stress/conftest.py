"""The tiny models, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from tests.tiny_models import TinyModels, make_tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return make_tiny_models(tmp_path_factory.mktemp("tiny"))
