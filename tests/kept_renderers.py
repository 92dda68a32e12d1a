"""Processes for chat templates that engines of tests pass on: each takes half a second to start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from rsd_engine.engine.chat.renderer import TemplateRenderer

USED_BY = ("rsd_engine.engine.prompts", "rsd_engine.engine.rewards.scorers")


class KeptRenderer(TemplateRenderer):
    """Leaves its process to the next renderer when it is closed."""

    _idle: ClassVar[list[subprocess.Popen[bytes]]] = []

    def _ask(self, request: bytes) -> dict[str, Any]:
        if self._process is None and self._idle:
            self._process = self._idle.pop()
        return super()._ask(request)

    def close(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            self._idle.append(process)

    @classmethod
    def end_all(cls) -> None:
        for process in cls._idle:
            process.kill()
            process.communicate()
        cls._idle.clear()


@pytest.fixture(scope="session", autouse=True)
def kept_renderers() -> Iterator[None]:
    """Renderers of engines keep their processes, where tests have engines."""
    with pytest.MonkeyPatch.context() as patch:
        for name in USED_BY:
            if name in sys.modules:
                patch.setattr(sys.modules[name], "TemplateRenderer", KeptRenderer)
        yield
    KeptRenderer.end_all()
