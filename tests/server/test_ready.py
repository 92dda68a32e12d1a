"""`/ready` writes a token with whatever models there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_engine import Engine
from rsd_engine.server.app import make_app
from rsd_engine.server.async_engine import AsyncEngine
from rsd_engine.server.service import Service
from tests.engine.two_vocabularies.families import FAMILIES
from tests.server.conftest import OPTIONS, Client
from tests.tiny_models import make_tiny_models


@pytest.mark.parametrize("roles", [("draft", "target", "prm"), ("target",)])
def test_with_two_vocabularies_and_with_a_model_alone(
    tmp_path: Path, roles: tuple[str, ...]
) -> None:
    draft, prm = FAMILIES["PRM of nobody"]
    sources = make_tiny_models(tmp_path, draft_tokenizer=draft, prm_tokenizer=prm).sources()
    given = [sources.get(role) if role in roles else None for role in ("draft", "target", "prm")]
    with Engine(*given, max_num_seqs=2, device="cpu") as engine:
        async_engine = AsyncEngine(engine)
        try:
            assert Client(make_app(Service(async_engine, OPTIONS))).get("/ready").status_code == 200
        finally:
            async_engine.close()
