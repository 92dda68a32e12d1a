"""What every route works with: the engine, the model's name, and who is let in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsd_engine.sampling_params import SamplingParams
from rsd_engine.server.async_engine import AsyncEngine, AsyncRequest
from rsd_engine.server.errors import ApiError
from rsd_engine.server.metrics import ServerMetrics

RETRY_AFTER = {"Retry-After": "1"}


@dataclass(frozen=True)
class ServerOptions:
    """How a server behaves.

    Attributes:
        model_names: what requests may call the model; the first is the one in answers.
        api_keys: one of them must come with every request; none means that anybody may ask.
        max_body_bytes: of a request.
        max_queue: samples that may wait for a slot; more are answered with 503.
        max_prompts: of one request.
        max_samples: `n` of one request.
        trust_chat_templates: whether a request may bring its own.
        keep_alive_seconds: of silence until a stream gets a comment line.
        drain_seconds: that running requests may take after a signal to stop.
        vllm_metrics: whether metrics that mean the same go by vLLM's names, too.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20
    max_queue: int = 256
    max_prompts: int = 256
    max_samples: int = 64
    trust_chat_templates: bool = False
    keep_alive_seconds: float = 10.0
    drain_seconds: float = 30.0
    vllm_metrics: bool = False


class Service:
    """The engine behind the routes.

    Args:
        engine: that answers.
        options: of the server.
    """

    def __init__(self, engine: AsyncEngine, options: ServerOptions) -> None:
        self.engine = engine
        self.options = options
        self.created = int(time.time())
        self.metrics = ServerMetrics(options.model_names[0], vllm_names=options.vllm_metrics)
        self.draining = False
        self._samples_open = 0

    @property
    def model(self) -> str:
        return self.options.model_names[0]

    @property
    def default_params(self) -> SamplingParams:
        return self.engine.engine.get_default_sampling_params()

    @property
    def modes(self) -> tuple[str, ...]:
        """What requests may ask for; the first is the default."""
        return self.engine.engine.parts.rules.modes

    @property
    def num_slots(self) -> int:
        return int(self.engine.engine.parts.core.state.num_slots)

    @property
    def num_waiting(self) -> int:
        """Samples that have no slot yet."""
        return max(0, self._samples_open - self.num_slots)

    @property
    def num_running(self) -> int:
        return min(self._samples_open, self.num_slots)

    def check_model(self, name: str | None) -> None:
        """Raises ApiError if a request names a model that is not here."""
        if name is not None and name not in self.options.model_names:
            raise ApiError(
                404, f"the model {name!r} is not served here; it is {self.model!r}", "model"
            )

    def check_health(self) -> None:
        """Raises ApiError if the engine has failed."""
        if self.engine.failure is not None:
            raise ApiError(503, f"the engine has failed: {self.engine.failure}")

    def check_open(self) -> None:
        """Raises ApiError if the engine has failed or the server is about to stop."""
        self.check_health()
        if self.draining:
            raise ApiError(503, "the server is about to stop", headers=RETRY_AFTER)

    async def submit(
        self, prompts: Sequence[Any], params: SamplingParams, *, stream: bool
    ) -> list[AsyncRequest]:
        """Queues the prompts of one request, all of them or none.

        Raises:
            ApiError: a prompt is not allowed, or the server is full or about to stop.
        """
        self.check_open()
        count = len(prompts) * params.n
        self._check_room(count)
        self._samples_open += count
        try:
            return await self.engine.submit(prompts, params, stream=stream)
        except ValueError as error:
            self.release(count)
            raise ApiError(400, str(error)) from None
        except BaseException:
            self.release(count)
            raise

    def release(self, samples: int) -> None:
        """Says that samples which `submit` let in have ended."""
        self._samples_open -= samples

    def _check_room(self, count: int) -> None:
        most = self.num_slots + self.options.max_queue
        if self._samples_open + count > most:
            self.metrics.refused.inc()
            raise ApiError(
                503,
                f"the queue is full: {self._samples_open} samples run or wait, and this request "
                f"has {count}; at most {most} may. Try again",
                headers=RETRY_AFTER,
            )
