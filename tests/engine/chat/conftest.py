"""A tokenizer and a reader of prompts, without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rsd_engine.engine.prompts import PromptReader
from rsd_engine.models.checkpoints.open import load_tokenizer, open_checkpoint
from tests.tiny_models import TinyModels


@pytest.fixture(scope="session")
def tokenizer(tiny: TinyModels) -> Any:
    return load_tokenizer(open_checkpoint(tiny.target))


@pytest.fixture(scope="session")
def reader(tokenizer: Any) -> Iterator[PromptReader]:
    made = PromptReader(tokenizer)
    yield made
    made.close()
