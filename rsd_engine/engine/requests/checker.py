"""Checks requests before they are queued: parameters, room in the contexts, pages in the pool."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from rsd_engine.core.slots import SlotRequest
from rsd_engine.engine.build import EngineParts
from rsd_engine.engine.dispatcher import CheckedRequest
from rsd_engine.engine.prompts import ResolvedPrompt, naming, naming_model
from rsd_engine.engine.requests.params import params_of_each
from rsd_engine.engine.requests.rules import check_clear, mode_of
from rsd_engine.engine.requests.slots import sample_request, slot_request, truncated
from rsd_engine.sampling_params import MAX_SEED, SamplingParams
from rsd_kernels.state.enums import Role


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
        views = self._views(prompt, params)
        first = self._slot(views, params, seed, stream)
        problem = self._parts.core.check(first)
        if problem:
            raise ValueError(
                f"max_tokens={params.max_tokens}: {problem}; "
                "lower max_tokens or raise kv_cache_memory_bytes"
            )
        main = self._parts.rules.main
        prompt = views.get(main) or next(iter(views.values()))
        others = [sample_request(first, i) for i in range(1, params.n)]
        return CheckedRequest(prompt, params, seed, [first, *others])

    def _views(self, prompt: ResolvedPrompt, params: SamplingParams) -> dict[Role, ResolvedPrompt]:
        """The prompt for each writer that reads it in its own way, the one that begins first."""
        rules = self._parts.rules
        if not rules.separate:
            return {rules.main: truncated(prompt, params)}
        assert prompt.draft is not None
        views = {Role.DRAFT: prompt.draft, Role.TARGET: prompt}
        mode = mode_of(params, rules)
        if mode == "rsd":
            check_clear(prompt, params)
        else:
            views = {role: view for role, view in views.items() if role.name.lower() == mode}
        return {role: truncated(view, params) for role, view in views.items()}

    def _slot(
        self,
        views: Mapping[Role, ResolvedPrompt],
        params: SamplingParams,
        seed: int,
        stream: bool,
    ) -> SlotRequest:
        """The first sample."""
        rules, found = self._parts.rules, list[SlotRequest]()
        for role, view in views.items():
            with naming_model(role.name.lower()) if len(views) > 1 else nullcontext():
                found.append(
                    slot_request(view, params, rules, seed=seed, stream=stream, writer=role)
                )
        first, *others = found
        return replace(first, target=others[0]) if others else first
