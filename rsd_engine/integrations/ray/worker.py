"""The actor of a Ray Data stage: one engine, which answers batches of rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray

from rsd_engine.engine.chat.questions import ChatSettings
from rsd_engine.engine.engine import Engine
from rsd_engine.engine.stream import Stream
from rsd_engine.integrations.ray.rows import add_answers, read_row
from rsd_engine.outputs import EngineDeadError, RequestOutput
from rsd_engine.sampling_params import SamplingParams

logger = logging.getLogger("rsd_engine")


class Worker:
    """Answers batches of rows, also several at once, from threads; they share the running batch.

    An actor of `Dataset.map_batches`, and as good without Ray.

    Args:
        engine: arguments of `Engine`.
        params: of rows that have none of their own; None takes the checkpoint's defaults.
        id_column: what tells rows apart, if they have it; see `read_row`.
        chat: how questions become prompts.
    """

    def __init__(
        self,
        engine: Mapping[str, Any],
        params: SamplingParams | None = None,
        *,
        id_column: str = "id",
        chat: ChatSettings | None = None,
    ) -> None:
        self._engine = Engine(**engine)
        self._params = params or self._engine.get_default_sampling_params()
        self._id_column = id_column
        self._chat = (chat or ChatSettings()).of(self._engine.get_tokenizer())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The rows with their answers; see `ANSWER`. A row that cannot be answered has an error.

        Raises:
            ValueError: see `add_answers`.
            EngineDeadError: the GPU failed; in Ray, the second time.
        """
        try:
            # All are queued before the first is waited for.
            started = [self._start(row) for row in batch.to_pylist()]
            results = [item if isinstance(item, str) else _result(item) for item in started]
        except EngineDeadError:
            _start_anew()
            raise
        return add_answers(batch, results)

    def close(self) -> None:
        """Frees the engine; in Ray, the end of the actor does."""
        self._engine.close()

    def _start(self, row: dict[str, Any]) -> Stream | str:
        """Queues what a row asks; or says why it cannot."""
        try:
            given, params = read_row(row, self._params, self._id_column)
            prompt = self._chat.engine_prompt(given)
            return self._engine.streams([prompt], params, by_token=False)[0]
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            return " ".join(str(error).split()) or type(error).__name__


def _start_anew() -> None:
    """Ends an actor's process, so that Ray starts another; but once: rows may be the reason."""
    if not ray.is_initialized() or ray.get_runtime_context().was_current_actor_reconstructed:
        return
    logger.exception("the engine is dead, and its process ends; Ray starts another")
    os._exit(1)


def _result(stream: Stream) -> RequestOutput:
    """Runs the engine until a request has ended."""
    for _ in stream:
        continue
    assert stream.output is not None
    return stream.output
