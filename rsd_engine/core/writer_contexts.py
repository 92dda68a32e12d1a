"""The contexts of a request whose draft and target have vocabularies of their own.

A slot holds the tokens of one writer at a time, whose turn it is. The host has the contexts of
both: its own prompt, then every kept step, as it wrote it or as the translation of the step's text.
So a context only grows, and each model reads each of its tokens once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from rsd_engine.core.events import StepDecided
from rsd_engine.core.slots import SlotRequest, fill_writer
from rsd_kernels.state.enums import MAX_CUT_TOKENS, Phase, RecordKind, Role
from rsd_kernels.state.slots import SlotState

Translate = Callable[[Sequence[int]], list[int]]
"""ids of a step by the writer that wrote it -> ids of its text for the other writer."""

_OTHER = {Role.DRAFT: Role.TARGET, Role.TARGET: Role.DRAFT}
_PHASES = {Role.DRAFT: Phase.DRAFT, Role.TARGET: Phase.TARGET}


def longest_context(state: SlotState, request: SlotRequest) -> int:
    """Tokens that a writer's context may have; the state has room for replaced tokens besides."""
    return min(request.max_context, state.tokens.shape[1] - MAX_CUT_TOKENS)


class WriterContexts:
    """Both contexts of one request.

    Args:
        request: its draft's view, with the target's in `target`.
        translate: for each writer, what turns its steps into the other's ids.
    """

    def __init__(self, request: SlotRequest, translate: Mapping[Role, Translate]) -> None:
        assert request.target is not None
        self._requests = {Role.DRAFT: request, Role.TARGET: request.target}
        self._translate = translate
        self._ids = {role: list(view.prompt) for role, view in self._requests.items()}
        self._error: Exception | None = None
        self._num_written = 0  # tokens of kept steps, as their writers wrote them
        self.writer = Role.DRAFT  # whose context the slot holds

    @property
    def output_length(self) -> int:
        """Tokens of kept steps in the longer of the two contexts."""
        views = self._requests.items()
        return max(len(self._ids[role]) - len(view.prompt) for role, view in views)

    def ids(self, role: Role) -> Sequence[int]:
        """The context of a writer, up to the last step that was kept."""
        return self._ids[role]

    def learn(self, step: StepDecided) -> None:
        """Adds a step that was kept."""
        if step.kind != RecordKind.KEPT:
            return
        self._ids[step.source] += step.token_ids
        try:
            self._ids[_OTHER[step.source]] += self._translate[step.source](step.token_ids)
        except Exception as error:
            self._error = error  # a launch may be running: `enter` tells it between two
        self._num_written += len(step.token_ids)

    def enter(self, state: SlotState, slot: int, writer: Role) -> bool:
        """Gives the slot to a writer, with its context, between two steps.

        Returns:
            False if its context has no room for another token; nothing was changed then.

        Raises:
            Exception: what translating a step has raised.
        """
        if self._error:
            raise self._error
        ids, view = self._ids[writer], self._requests[writer]
        length, longest = len(ids), longest_context(state, view)
        if length >= longest:
            return False
        # What is left of them is the same for both writers: they are counted as they are written.
        max_tokens = self._requests[Role.DRAFT].max_tokens - self._num_written
        min_tokens = max(view.min_length - len(view.prompt) - self._num_written, 0)
        state.tokens[slot, :length] = torch.tensor(ids, dtype=torch.int32)
        state.prompt_length[slot] = len(view.prompt)
        state.length[slot] = state.committed[slot] = length
        state.length_limit[slot] = min(length + max_tokens, longest)
        state.min_length[slot] = length + min_tokens
        fill_writer(state, slot, view)
        state.phase[slot] = _PHASES[writer]
        self.writer = writer
        return True
