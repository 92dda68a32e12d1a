"""A fake server for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.fake_server import FakeServer, running


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with running(FakeServer()) as server:
        yield server
