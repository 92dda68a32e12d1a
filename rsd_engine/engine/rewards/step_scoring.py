"""`Engine.score`: the PRM's rewards of given steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rsd_engine.core.solution_rewards import Solution, SolutionRewards
from rsd_engine.engine.build import EngineParts
from rsd_engine.engine.dispatcher import Dispatcher
from rsd_engine.engine.memory_estimate import MAX_ROWS
from rsd_engine.engine.models import PrmModel
from rsd_engine.engine.rewards.solutions import Questions, SolutionReader, Steps
from rsd_engine.outputs import ScoredSolution, ScoredStep
from rsd_kernels.state.enums import Role


class StepScoring:
    """What `Engine` can do with its PRM alone."""

    _parts: EngineParts
    _alive: Callable[[], Dispatcher]

    def score(
        self,
        question: Questions,
        steps: Steps | Sequence[Steps] | None = None,
    ) -> list[ScoredSolution]:
        """The rewards of given steps: those that the same steps have in the loop.

        >>> [result] = engine.score("What is 2 + 3?", ["2 + 3 = 5.", "The answer is 5."])
        >>> result.rewards

        Many solutions are read in one pass, each token once. Requests that run meanwhile go on
        between the passes; without free pages it waits until some of them have ended.

        Args:
            question: of one solution, or a list with one for each; or, without `steps`, messages
                of which the last is the assistant's with the solution, or a list of such. A dict
                with "question" and "steps", or with "messages", may stand in place of messages.
            steps: a list of texts, or one text that the step delimiters cut; a list of these for
                several solutions, which may have one question.

        Returns:
            One result per solution, in the same order.

        Raises:
            ValueError: the engine has no PRM, or a solution is not allowed; none is read then.
        """
        dispatcher, prm = self._alive(), self._parts.models.prm
        if prm is None or self._parts.models.scorer is not None:
            raise ValueError("score needs a PRM; make the engine with draft, target and prm")
        if prm.loaded is None:
            raise ValueError("score needs a PRM that is here; this one is on a server: ask that")
        rules = self._parts.rules
        reader = SolutionReader(rules.delimiters, prm.format, rules.prm_max_len)
        given = reader.given(question, steps)
        if not given:
            return []
        work = self._work(prm, reader.tokens(given))
        dispatcher.read_solutions(work)
        read = zip(given, work.rewards, work.tokens_read, strict=True)
        return [
            ScoredSolution(
                question=solution.question,
                steps=tuple(map(ScoredStep, solution.steps, rewards)),
                tokens_read=tokens,
            )
            for solution, rewards, tokens in read
        ]

    def _work(self, prm: PrmModel, solutions: Sequence[Solution]) -> SolutionRewards:
        parts, core = self._parts, self._parts.core
        kv = parts.pool.view(parts.models.kv_shapes[Role.PRM])
        work = SolutionRewards(
            state=core.state,
            read=partial(prm.model.rewards, kv),
            max_rows=MAX_ROWS,
            tokens_per_page=core.loop.tokens_per_page[Role.PRM],
            solutions=solutions,
        )
        total = core.state.free_pages.shape[0]
        if work.most_pages > total:
            raise ValueError(
                f"a solution needs {work.most_pages} KV pages and the pool has {total}; shorten it "
                "or raise kv_cache_memory_bytes"
            )
        return work
