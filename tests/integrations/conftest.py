"""Tasks and models of lm-evaluation-harness, and a server that listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import async_engine, engine, live  # noqa: F401

TASKS = Path(__file__).parent / "tasks"


class Harness:
    """Runs the demo family's problems as a task of lm-evaluation-harness."""

    def run(
        self, model: Any, problems: int, **more: Any
    ) -> tuple[float, list[str], dict[str, Any]]:
        """Exact match, the outputs in order of the problems, and what is told of the model."""
        import lm_eval
        from lm_eval.tasks import TaskManager

        tasks = TaskManager(
            include_path=str(TASKS), include_defaults=False, metadata={"problems": problems}
        )
        found = lm_eval.simple_evaluate(
            model,
            tasks=["demo_problems"],
            task_manager=tasks,
            apply_chat_template=True,
            bootstrap_iters=0,
            **more,
        )
        samples = sorted(found["samples"]["demo_problems"], key=lambda sample: sample["doc_id"])
        texts = [sample["resps"][0][0] for sample in samples]
        return found["results"]["demo_problems"]["exact_match,none"], texts, found["config"]


@pytest.fixture
def harness() -> Harness:
    return Harness()
