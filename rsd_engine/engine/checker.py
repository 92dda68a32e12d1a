"""Checks requests before they are queued: parameters, room in the contexts, pages in the pool."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from rsd_engine.engine.build import EngineParts
from rsd_engine.engine.dispatcher import CheckedRequest
from rsd_engine.engine.prompts import ResolvedPrompt, naming
from rsd_engine.engine.requests import params_of_each, sample_request, slot_request, truncated
from rsd_engine.sampling_params import MAX_SEED, SamplingParams


class RequestChecker:
    """Makes requests of one engine ready for its slots.

    Args:
        parts: what the engine runs.
        default_params: of requests without parameters.
    """

    def __init__(self, parts: EngineParts, default_params: SamplingParams) -> None:
        self._parts = parts
        self._default_params = default_params

    def check_all(
        self,
        prompts: Sequence[ResolvedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        *,
        stream: bool = False,
    ) -> list[CheckedRequest]:
        """The requests for `prompts`, in order.

        Args:
            prompts: any number of them.
            params: one for all or one for each; None takes the defaults.
            stream: whether somebody reads tokens as they come.

        Raises:
            ValueError: a request is not allowed; of several prompts the error names which.
        """
        checked = []
        each = params_of_each(params, len(prompts), self._default_params)
        for position, (prompt, p) in enumerate(zip(prompts, each, strict=True)):
            with naming(position, len(prompts)):
                checked.append(self._check(prompt, p, stream))
        return checked

    def _check(
        self, prompt: ResolvedPrompt, params: SamplingParams, stream: bool
    ) -> CheckedRequest:
        seed = secrets.randbelow(MAX_SEED) if params.seed is None else params.seed
        prompt = truncated(prompt, params)
        first = slot_request(prompt, params, self._parts.rules, seed=seed, stream=stream)
        problem = self._parts.core.check(first)
        if problem:
            raise ValueError(
                f"max_tokens={params.max_tokens}: {problem}; "
                "lower max_tokens or raise kv_cache_memory_bytes"
            )
        others = [sample_request(first, i) for i in range(1, params.n)]
        return CheckedRequest(prompt, params, seed, [first, *others])
