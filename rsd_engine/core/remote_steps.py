"""Steps that a server writes or scores, while the other slots go on.

A slot that waits for a server is not active, so the loop passes it over; its call says that it is
not preempted either. What comes back is a proposal: the ids are read by the same rules as those
that are sampled here, up to the end of the step, and a reward decides as the PRM's pass would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

from rsd_engine.core.events import Event
from rsd_engine.core.failures import Failure
from rsd_engine.core.running import Running, RunningRequests
from rsd_engine.core.slots import SlotRequest
from rsd_engine.loop.rsd import Loop
from rsd_kernels import ops
from rsd_kernels.state.enums import ConfidenceKind, Finish, Phase, Role
from rsd_kernels.state.slots import SlotState


class RemoteError(RuntimeError):
    """A server did not do what it was asked for; one line for whoever reads the result."""


@dataclass(frozen=True)
class StepToWrite:
    """What a server is to write.

    Attributes:
        request: whose step it is; of a target with a vocabulary of its own, the target's view.
        context: ids of the prompt, of the kept steps, and of the beginning of this one.
        max_tokens: most that are left of the step.
        min_tokens: of these before nothing may end the output.
        num_steps: kept so far.
    """

    request: SlotRequest
    context: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    num_steps: int


@dataclass(frozen=True)
class WrittenIds:
    """What came back.

    Attributes:
        ids: at least one.
        ends_text: whether the server's model ended its text with them.
        tokens_read: that the model read for them.
    """

    ids: tuple[int, ...]
    ends_text: bool
    tokens_read: int


@dataclass(frozen=True)
class ScoredIds:
    """The reward of a step, and how many tokens were read for it."""

    reward: float
    tokens_read: int


@dataclass(frozen=True)
class RemoteRoles:
    """The roles that servers play.

    Attributes:
        write: has the target's step written, or its beginning; None: the target is here.
        score: has the last step of a PRM's context scored; None: so is the PRM.
        close: ends what runs and closes the connections.
    """

    write: Callable[[StepToWrite], Future[WrittenIds]] | None
    score: Callable[[Sequence[int]], Future[ScoredIds]] | None
    close: Callable[[], None]

    @property
    def roles(self) -> tuple[Role, ...]:
        """Which they are."""
        asked = {Role.TARGET: self.write, Role.PRM: self.score}
        return tuple(role for role, ask in asked.items() if ask)


class RemoteSteps:
    """Sends slots to servers, and takes them back; between launches.

    Args:
        slots: the requests.
        loop: that they belong to.
        roles: that servers play; None if none does.
        wake: is called, in any thread, when a call has ended.
    """

    def __init__(
        self,
        slots: RunningRequests,
        loop: Loop,
        roles: RemoteRoles | None,
        wake: Callable[[], None],
    ) -> None:
        self._slots = slots
        self._loop = loop
        self._roles = roles
        self._wake = wake

    def send(self, state: SlotState, tell: Callable[[Event], None]) -> None:
        """Asks for whatever active slots wait for; `tell` takes the ends of those that cannot."""
        if self._roles is None:
            return
        phases = state.phase.tolist()
        for running, slot in self._slots.where(active=True):
            try:
                if phases[slot] == Phase.TARGET and self._roles.write:
                    call = self._roles.write(_step_to_write(state, slot, running))
                    running.call = call
                elif phases[slot] == Phase.SCORE and self._roles.score:
                    length = int(state.prm_length[slot])
                    running.call = self._roles.score(state.prm_tokens[slot, :length].tolist())
                else:
                    continue
            except Exception as error:
                failure = Failure.caught("remote", "asking a server", error)
                tell(self._slots.fail(slot, failure))
                continue
            running.called_at = time.perf_counter()
            state.active[slot] = 0
            running.call.add_done_callback(lambda call: self._wake())

    def take_back(self, state: SlotState, tell: Callable[[Event], None]) -> list[int]:
        """Goes on with the slots whose calls have ended, and returns them.

        A slot whose step has ended waits for the host then; one whose step was scored is decided.
        """
        back = [(slot, r) for slot, r in enumerate(self._slots) if r and r.call and r.call.done()]
        for slot, running in back:
            call, running.call = running.call, None
            state.active[slot] = 1
            try:
                self._go_on(state, slot, call.result() if call else None, running)
            except (Exception, CancelledError) as error:
                role = "target" if int(state.phase[slot]) == Phase.TARGET else "prm"
                failure = Failure.caught("remote", f"the {role}'s server", error)
                tell(self._slots.fail(slot, failure))
        return [slot for slot, _ in back]

    def close(self) -> None:
        """Closes the connections."""
        if self._roles is not None:
            self._roles.close()

    def _go_on(self, state: SlotState, slot: int, found: object, running: Running) -> None:
        role = Role.TARGET if isinstance(found, WrittenIds) else Role.PRM
        assert isinstance(found, WrittenIds | ScoredIds)
        seconds = time.perf_counter() - running.called_at
        state.passes[role, slot] += 1
        state.tokens_read[role, slot] += found.tokens_read
        state.nanoseconds[role, slot] += int(seconds * 1e9)
        if isinstance(found, ScoredIds):
            state.confidence[slot] = found.reward
            sizes = self._loop.tokens_per_page
            ops.end_slot_step(state, slot, sizes, ConfidenceKind.GIVEN)
            return
        _check_ids(found.ids, self._loop.tables[Role.TARGET].token_start.shape[0] - 1)
        taken = ops.append_given(
            state, slot, found.ids, self._loop.tables[Role.TARGET], Role.TARGET
        )
        if found.ends_text and taken == len(found.ids) and not int(state.finish[slot]):
            state.finish[slot] = Finish.STOP_TOKEN
            state.ended[slot] = 1
        if int(state.ended[slot]):
            state.phase[slot] = Phase.WAIT_HOST


def _step_to_write(state: SlotState, slot: int, running: Running) -> StepToWrite:
    length, committed = int(state.length[slot]), int(state.committed[slot])
    left = int(state.length_limit[slot]) - length
    max_tokens = min(left, int(state.max_step_tokens[slot]) - (length - committed))
    return StepToWrite(
        request=running.request.target or running.request,
        context=tuple(state.tokens[slot, :length].tolist()),
        max_tokens=max_tokens,
        min_tokens=min(max(int(state.min_length[slot]) - length, 0), max_tokens),
        num_steps=int(state.num_steps[slot]),
    )


def _check_ids(ids: Sequence[int], num_ids: int) -> None:
    if not ids:
        raise RemoteError("it returned no tokens")
    beyond = [i for i in ids if not 0 <= i < num_ids]
    if beyond:
        raise RemoteError(
            f"it returned the id {beyond[0]}, and the vocabulary has ids below {num_ids}; its "
            "model must have the draft's vocabulary"
        )
