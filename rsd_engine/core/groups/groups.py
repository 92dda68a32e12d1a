"""Forks slots and chooses among candidates, between two launches.

The first of a prompt's samples reads it for all, and the others are forked from it. A request with
candidates is forked where a step begins; when all of them are scored one is chosen, or as many as
there are beams, and what follows is decided as for any other step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from rsd_engine.core.events import Event, LostCandidate, StepDecided
from rsd_engine.core.failures import Failure
from rsd_engine.core.groups.candidates import Candidates, Solution, Stage
from rsd_engine.core.groups.step_logprobs import step_logprobs
from rsd_engine.core.prefixes.cache import PrefixCache
from rsd_engine.core.running import Running, RunningRequests
from rsd_engine.loop.rsd import Loop
from rsd_engine.steps.selection import GSI, Softmax, best, draw, survivors
from rsd_kernels import ops
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.state.enums import ConfidenceKind, Finish, Mode, Phase, Purpose, Role
from rsd_kernels.state.phases import has_read_prompt
from rsd_kernels.state.slots import SlotState

CANDIDATE_SHIFT = 16  # of a candidate's number in the sample index that its draws depend on
_UNSCORABLE = (Finish.ERROR, Finish.PRM_FULL)
_ACCEPTED, _REJECTED = 1.0, 0.0  # as rewards, where the policy has nothing to decide
_AT_A_STEP = (Phase.CHOICE, Phase.CANDIDATE)  # of a solution: it may begin one
_HALF = (PolicyKind.THRESHOLD, 0.5, 0.0)


class Groups:
    """The candidates of all requests that run.

    Args:
        slots: the requests.
        loop: that they belong to.
        prefixes: is told who forks whom.
    """

    def __init__(self, slots: RunningRequests, loop: Loop, prefixes: PrefixCache) -> None:
        self._slots = slots
        self._prefixes = prefixes
        self._loop = loop
        self._state: SlotState = loop.state

    def choose(self, collect: Callable[[], None], tell: Callable[[Event], None]) -> bool:
        """Chooses where all candidates are scored, and decides the steps that were chosen.

        Returns whether there was a choice.

        Args:
            collect: takes the records of the steps that are decided.
            tell: takes the ends of requests that fail.
        """
        ready = [r for r in self._slots.all if r.candidates and self._all_scored(r.candidates)]
        for running in ready:
            assert running.candidates is not None
            try:
                self._choose(running, running.candidates)
            except Exception as error:
                self._fail(running, error, tell)
        if not ready:
            return False
        int(self._state.log_head)  # host read: waits until the device has decided these steps
        collect()
        ends = self._loop.ends
        if ends:
            ops.retokenise(self._state, ends.tables, ends.merges, self._loop.bridge_scratch)
        return True

    def go_on(self, tell: Callable[[Event], None]) -> bool:
        """Forks slots whose prompt has been read, and those that begin a step; whether any."""
        went_on, phases = False, self._state.phase.tolist()  # one copy for all slots
        for running in self._slots.all:
            slot = running.slots[0]
            reads_prompt = not running.waits and phases[slot] == Phase.PROMPT
            try:
                if reads_prompt and has_read_prompt(self._state, slot):
                    self._share_prompt(running)
                    went_on = True
                elif running.candidates:
                    went_on |= self._go_on(running, running.candidates, phases, tell)
            except Exception as error:
                self._fail(running, error, tell)
        return went_on

    def told_by(self, key: int) -> list[StepDecided]:
        """The steps of the best beam of a request that is aborted: it has told none of them."""
        for running in self._slots.all:
            if running.key == key and running.candidates:
                return running.candidates.end()
        return []

    def _fail(self, running: Running, error: Exception, tell: Callable[[Event], None]) -> None:
        failure = Failure.caught("op", "going on with candidates for a step", error)
        tell(self._slots.fail(running.slots[0], failure))

    # ------------------------------------------------------------------ forks

    def _share_prompt(self, reader: Running) -> None:
        """Forks a slot that has read the prompt into those that wait for it; all begin a step."""
        sharers = [r for r in self._slots.all if r.waits and r.prompt == reader.prompt]
        self._fork(reader.slots[0], [running.slots[0] for running in sharers])
        for running in (reader, *sharers):
            slot, request = running.slots[0], running.request
            running.waits = False
            self._state.sample_index[slot] = request.sample_index
            if running.candidates:
                self._begin_step(running, running.candidates)
            else:
                writes = Phase.TARGET if request.mode == Mode.TARGET else Phase.DRAFT
                self._state.phase[slot] = writes

    def _begin_step(self, running: Running, candidates: Candidates) -> None:
        """The draft is to write candidates for the next step of every open solution."""
        each = running.request.step_candidates
        if candidates.stage == Stage.PROMPT:
            each *= candidates.width
        if isinstance(candidates.select, GSI):
            self._set_policy(running.slots[0])
        idle = candidates.idle(solution.slot for solution in candidates.open)
        candidates.writers = []
        for solution in candidates.open:
            forks, idle = idle[: each - 1], idle[each - 1 :]
            self._fork(solution.slot, forks)
            candidates.writers += [(slot, solution) for slot in (solution.slot, *forks)]
        self._number(running, candidates)
        self._write(candidates, Phase.DRAFT, Stage.DRAFTS)

    def _number(self, running: Running, candidates: Candidates) -> None:
        """Gives every candidate draws of its own; those of the first are the sample's."""
        for i, (slot, _) in enumerate(candidates.writers):
            sample = running.request.sample_index | i << CANDIDATE_SHIFT
            self._state.sample_index[slot] = sample

    def _write(self, candidates: Candidates, phase: Phase, stage: Stage) -> None:
        state, group = self._state, candidates.slots[0]
        for slot, _ in candidates.writers:
            state.phase[slot] = phase
            state.group[slot] = group
        state.group_left[group] = len(candidates.writers)
        candidates.stage = stage

    def _fork(self, source: int, targets: Sequence[int]) -> None:
        if targets:
            loop = self._loop
            ops.fork(self._state, loop.pages, source, targets, loop.tokens_per_page)
            self._prefixes.fork(source, targets)

    def _set_policy(self, slot: int) -> None:
        """One that accepts a reward of 1 and rejects 0."""
        state = self._state
        state.policy_kind[slot], state.policy_a[slot], state.policy_b[slot] = _HALF

    # ------------------------------------------------------------------ choices

    def _all_scored(self, candidates: Candidates) -> bool:
        writing = candidates.stage in (Stage.DRAFTS, Stage.REWRITES)
        return writing and int(self._state.group_left[candidates.slots[0]]) == 0

    def _choose(self, running: Running, candidates: Candidates) -> None:
        slots = [slot for slot, _ in candidates.writers]
        rewards = self._state.reward[slots].tolist()
        stage, candidates.stage = candidates.stage, Stage.DECIDED
        if candidates.width > 1:
            choose = self._keep_beams if stage == Stage.DRAFTS else self._keep_rewrites
            choose(candidates, rewards)
        elif stage == Stage.DRAFTS:
            self._choose_draft(running, candidates, rewards)
        else:
            self._choose_rewrite(running, candidates, rewards)

    def _choose_draft(self, running: Running, candidates: Candidates, rewards: list[float]) -> None:
        select, scores = candidates.select, None
        lead = candidates.slots[0]
        if isinstance(select, GSI):
            scores = self._tilted(candidates, rewards, select.beta)
            chosen = draw(scores, self._uniform(running, Purpose.CHOOSE_DRAFT))
        elif isinstance(select, Softmax):
            scaled = [select.beta * reward for reward in rewards]
            chosen = draw(scaled, self._uniform(running, Purpose.CHOOSE_DRAFT))
        else:
            chosen = best(rewards)
        self._take(candidates, chosen, rewards, scores)
        given = rewards[chosen]
        if isinstance(select, GSI) and scores is not None:
            given = _ACCEPTED if scores[chosen] > select.threshold else _REJECTED
        self._decide(lead, given)

    def _choose_rewrite(
        self, running: Running, candidates: Candidates, rewards: list[float]
    ) -> None:
        assert isinstance(candidates.select, GSI)
        scaled = [candidates.select.beta * reward for reward in rewards]
        chosen = draw(scaled, self._uniform(running, Purpose.CHOOSE_TARGET))
        self._take(candidates, chosen, rewards, None)
        self._decide(candidates.slots[0], _ACCEPTED)

    def _take(
        self,
        candidates: Candidates,
        chosen: int,
        rewards: list[float],
        scores: list[float] | None,
    ) -> None:
        """Puts the chosen candidate into the first slot; the others have lost."""
        [solution] = candidates.solutions
        for i, (slot, _) in enumerate(candidates.writers):
            if i != chosen:
                score = scores[i] if scores else None
                solution.lost += (self._lost(slot, rewards[i], score),)
        solution.reward = rewards[chosen]
        slot = candidates.writers[chosen][0]
        if slot != solution.slot:
            self._prefixes.discard([solution.slot])
            self._fork(slot, [solution.slot])
        self._rest(candidates.idle(solution.slot for solution in candidates.open))

    def _keep_beams(self, candidates: Candidates, rewards: list[float]) -> None:
        """Of all candidates and the solutions that have ended, keeps the best."""
        ended = [solution for solution in candidates.solutions if solution.finish]
        ranked = [*(solution.reward for solution in ended), *rewards]
        kept = survivors(ranked, candidates.width)
        chosen = {i - len(ended) for i in kept if i >= len(ended)}
        lost: dict[int, tuple[LostCandidate, ...]] = {}  # by the solution that they went on from
        for i, (slot, parent) in enumerate(candidates.writers):
            if i not in chosen:
                found = self._lost(slot, rewards[i], None)
                lost[id(parent)] = (*lost.get(id(parent), ()), found)
                candidates.written.append(found)
        solutions, new = [], []
        for i in kept:
            if i < len(ended):
                solutions.append(ended[i])
                continue
            slot, parent = candidates.writers[i - len(ended)]
            solution = parent.branch(slot)
            solution.reward = rewards[i - len(ended)]
            solution.lost = lost.get(id(parent), ())
            solutions.append(solution)
            new.append(solution)
        candidates.solutions = solutions
        self._rest(candidates.idle(solution.slot for solution in candidates.open))
        for solution in new:
            self._decide(solution.slot, solution.reward)

    def _keep_rewrites(self, candidates: Candidates, rewards: list[float]) -> None:
        for (slot, solution), reward in zip(candidates.writers, rewards, strict=True):
            solution.reward = reward
            self._decide(slot, _ACCEPTED)

    def _decide(self, slot: int, reward: float) -> None:
        """The policy accepts or rejects a draft's step; the target's is kept."""
        state, sizes = self._state, self._loop.tokens_per_page
        state.group[slot] = -1
        state.active[slot] = 1
        if int(state.finish[slot]) in _UNSCORABLE or int(state.mode[slot]) != Mode.RSD:
            ops.end_slot_step(state, slot, sizes)
            return
        state.confidence[slot] = reward
        ops.end_slot_step(state, slot, sizes, ConfidenceKind.GIVEN)

    def _rest(self, slots: Sequence[int]) -> None:
        """Slots of no solution that goes on give their pages up, and wait to be forked into."""
        self._prefixes.discard(slots)
        for slot in slots:
            self._state.group[slot] = -1
            self._state.phase[slot] = Phase.CANDIDATE
            self._state.active[slot] = 1

    def _lost(self, slot: int, reward: float, score: float | None) -> LostCandidate:
        state = self._state
        first, last = int(state.committed[slot]), int(state.length[slot])
        tokens = tuple(state.tokens[slot, first:last].tolist())
        return LostCandidate(Role(int(state.step_source[slot])), tokens, reward, score)

    def _tilted(self, candidates: Candidates, rewards: list[float], beta: float) -> list[float]:
        """beta * reward + ln p_target - ln p_draft of each step; -inf where it has no reward."""
        slots = [slot for slot, _ in candidates.writers]
        scored = [s for s, r in zip(slots, rewards, strict=True) if r != -math.inf]
        by_target = self._logprobs(Role.TARGET, scored)
        by_draft = self._logprobs(Role.DRAFT, scored)
        return [
            beta * reward + by_target[slot] - by_draft[slot] if slot in by_target else -math.inf
            for slot, reward in zip(slots, rewards, strict=True)
        ]

    def _logprobs(self, role: Role, slots: list[int]) -> dict[int, float]:
        """Of the step in each slot; a pass that fails is tried once more, as in the loop."""
        try:
            sums = step_logprobs(self._loop, role, slots, self._slots.make_room)
        except Exception:
            sums = step_logprobs(self._loop, role, slots, self._slots.make_room)
        return dict(zip(slots, sums, strict=True))

    def _uniform(self, running: Running, purpose: Purpose) -> float:
        slot, request = running.slots[0], running.request
        return ops.uniform(
            ops.DrawKey(
                seed=request.seed,
                sample=request.sample_index,
                num_steps=int(self._state.num_steps[slot]),
                position=int(self._state.committed[slot]),
                purpose=purpose,
            )
        )

    # ------------------------------------------------------------------ between steps

    def _go_on(
        self,
        running: Running,
        candidates: Candidates,
        phases: Sequence[int],
        tell: Callable[[Event], None],
    ) -> bool:
        """After a choice: rewrites that are scored, the next step, or the end of a beam search."""
        self._rest([slot for slot in candidates.slots if phases[slot] == Phase.DONE])
        if candidates.stage != Stage.DECIDED:
            return False
        in_rsd = [s for s in candidates.open if int(self._state.mode[s.slot]) == Mode.RSD]
        rejected = [s for s in in_rsd if phases[s.slot] == Phase.TARGET]
        if candidates.scores_rewrites and rejected:
            self._rewrite(running, candidates, rejected)
        elif not candidates.open:
            self._end_search(running, candidates, tell)
        elif all(phases[s.slot] in _AT_A_STEP for s in candidates.open):
            self._begin_step(running, candidates)
        else:
            self._let_wait(candidates.open)  # for one that writes on unscored
            return False
        return True

    def _let_wait(self, solutions: Iterable[Solution]) -> None:
        """Those that may begin a step wait for others; in CHOICE they would end every launch."""
        for slot in (solution.slot for solution in solutions):
            if int(self._state.phase[slot]) == Phase.CHOICE:
                self._state.phase[slot] = Phase.CANDIDATE

    def _rewrite(self, running: Running, candidates: Candidates, rejected: list[Solution]) -> None:
        """The target writes the steps that were rejected, GSI as many as the draft has written."""
        candidates.writers = [(solution.slot, solution) for solution in rejected]
        if isinstance(candidates.select, GSI):
            [solution] = rejected
            others = candidates.idle([solution.slot])
            self._fork(solution.slot, others)
            candidates.writers += [(slot, solution) for slot in others]
            self._number(running, candidates)
        self._let_wait(candidates.open)
        self._write(candidates, Phase.TARGET, Stage.REWRITES)

    def _end_search(
        self, running: Running, candidates: Candidates, tell: Callable[[Event], None]
    ) -> None:
        for step in candidates.end():
            tell(step)
        assert candidates.output is not None
        tell(self._slots.leave(running.slots[0], candidates.output.finish))
