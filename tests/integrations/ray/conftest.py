"""An actor of Ray Data without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from rsd_engine import SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.integrations.ray.worker import Worker

ENGINE: dict[str, Any] = {
    **{role: str(checkpoint_dir(role)) for role in ("draft", "target", "prm")},
    "device": "cpu",
    "max_num_seqs": 4,
}
PARAMS = SamplingParams(temperature=1.0, max_tokens=48)


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The rows as an actor gets them: all have the columns of all."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in columns})


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    made = Worker(ENGINE, PARAMS)
    yield made
    made.close()
