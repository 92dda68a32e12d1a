"""Turns what a user passes to `Engine.score` into questions and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsd_engine.arguments import check_text, is_list, kind
from rsd_engine.core.solution_rewards import Solution
from rsd_engine.engine.chat.conversation import (
    Message,
    check_messages,
    content_text,
    default_question,
)
from rsd_engine.engine.prompts import naming
from rsd_engine.models.reward.family import PrmFormat
from rsd_engine.steps.automaton import ByteAutomaton

Steps = str | Sequence[str]
"""A solution's text, or its steps one by one."""
Conversation = Sequence[Message] | Mapping[str, Any]
"""Messages of which the last is the solution; or a dict of them, or of "question" and "steps"."""
Questions = str | Sequence[str] | Conversation | Sequence[Conversation]


@dataclass(frozen=True)
class GivenSolution:
    """A question, and the steps whose rewards are asked for, with their delimiters if they have."""

    question: str
    steps: tuple[str, ...]


class SolutionReader:
    """Reads the solutions of one engine.

    Args:
        delimiters: end the steps of a text.
        form: of the PRM.
        max_len: tokens that the PRM's context holds.
    """

    def __init__(self, delimiters: ByteAutomaton, form: PrmFormat, max_len: int) -> None:
        self._delimiters = delimiters
        self._form = form
        self._max_len = max_len

    def given(
        self,
        question: Questions,
        steps: Steps | Sequence[Steps] | None,
    ) -> list[GivenSolution]:
        """One solution or several, as `Engine.score` takes them.

        Raises:
            ValueError: one is not allowed; of several the error names which.
        """
        pairs = _pairs(question, steps)
        found = []
        for index, (asked, answer) in enumerate(pairs):
            with naming(index, len(pairs), "solutions"):
                found.append(self._one(asked) if answer is None else self._solution(asked, answer))
        return found

    def tokens(self, solutions: Sequence[GivenSolution]) -> list[Solution]:
        """The same in the PRM's tokens.

        Raises:
            ValueError: one is too long.
        """
        found = []
        for index, solution in enumerate(solutions):
            with naming(index, len(solutions), "solutions"):
                found.append(self._tokens(solution))
        return found

    def _one(self, given: Any) -> GivenSolution:
        """A conversation, or a dict of one or of question and steps."""
        if not isinstance(given, Mapping):
            return self._conversation(given)
        if set(given) == {"messages"}:
            return self._conversation(given["messages"])
        if set(given) != {"question", "steps"}:
            raise ValueError(
                "a solution dict must have 'question' and 'steps', or 'messages', got keys "
                f"{list(given)}"
            )
        return self._solution(given["question"], given["steps"])

    def _conversation(self, messages: Any) -> GivenSolution:
        """The last message is the solution, and what is asked before it the question."""
        *before, last = check_messages(messages)
        if last["role"] != "assistant" or last.get("content") is None or not before:
            raise ValueError(
                "the last of several messages must be the assistant's, with the solution as its "
                f"content, got one of {last['role']!r}"
            )
        return self._solution(default_question(before), content_text(last["content"]))

    def _solution(self, question: object, steps: object) -> GivenSolution:
        check_text("question", question)
        if isinstance(steps, str):
            check_text("steps", steps)
            steps = self._split(steps)
        if not is_list(steps):
            raise ValueError(f"steps must be text or a list of texts, got {kind(steps)}")
        if not steps:
            raise ValueError("steps is empty; it needs at least one step")
        for step in steps:
            check_text("a step", step)
        return GivenSolution(str(question), tuple(steps))

    def _split(self, text: str) -> list[str]:
        """`text`, cut after every delimiter, as the loop cuts what a writer writes."""
        data, steps = text.encode("utf-8"), []
        while data:
            _, end, _ = self._delimiters.find(0, data)
            steps.append(data[:end].decode("utf-8", errors="replace"))
            data = data[end:]
        return steps or [""]

    def _tokens(self, solution: GivenSolution) -> Solution:
        form = self._form
        segments = []
        for i, step in enumerate(solution.steps):
            ids = form.step_tokens(self._without_delimiter(step), is_first=i == 0)
            segments.append(tuple(ids if i else [*form.prompt_ids(solution.question), *ids]))
        found = Solution(tuple(segments), form.num_transient)
        if found.length > self._max_len:
            raise ValueError(
                f"question and steps take {found.length} tokens of the PRM's context, which holds "
                f"{self._max_len}; shorten them"
            )
        return found

    def _without_delimiter(self, step: str) -> str:
        data = step.encode("utf-8")
        state, end, match = self._delimiters.find(0, data)
        del state
        return data[: end - match].decode("utf-8") if end == len(data) else step


def _is_message(solutions: Sequence[Any]) -> bool:
    """Whether these are the messages of one conversation."""
    return bool(solutions) and isinstance(solutions[0], Mapping) and "role" in solutions[0]


def _pairs(question: Any, steps: Any) -> list[tuple[Any, Any]]:
    """Question and steps of each solution; a conversation has no steps of its own."""
    if steps is None:
        if isinstance(question, Mapping) or (is_list(question) and _is_message(question)):
            question = [question]
        if not is_list(question):
            raise ValueError(
                "score takes a question and its steps, or messages of which the last is the "
                f"solution, got {kind(question)} and no steps"
            )
        return [(solution, None) for solution in question]
    if isinstance(question, str):
        is_many = is_list(steps) and any(is_list(item) for item in steps)
        return [(question, answer) for answer in (steps if is_many else [steps])]
    if not is_list(question) or not is_list(steps) or len(question) != len(steps):
        count = len(steps) if is_list(steps) else kind(steps)
        raise ValueError(
            "several questions must be a list, and steps a list with one entry for each, got "
            f"{len(question) if is_list(question) else kind(question)} and {count}"
        )
    return list(zip(question, steps, strict=True))
