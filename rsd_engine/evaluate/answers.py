"""Finds the answer in a solution, and tells whether it is right, by the kind of the question."""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import Any, Protocol

from rsd_engine.demo.problems import extract_answer
from rsd_engine.evaluate.missing import needs_package
from rsd_engine.evaluate.record import AnswerKind

_SECONDS = 5  # for one expression; sympy may think about some for ever
_BOX = "\\boxed{"
_DELIMITER = re.compile(r"(?<!\\)\$")  # of mathematics, unlike \$ of dollars
_LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")
_SAID = re.compile(r"answer\s+is:?\s*[({\[*$]*\s*([A-J])(?![A-Za-z])", re.IGNORECASE)
_BRACKETED = re.compile(r"\(([A-J])\)")


class Answers(Protocol):
    """How answers of one kind are read and compared."""

    def find(self, text: str) -> str | None:
        """The answer that a solution gives, as it is written there; None if it gives none."""

    def same(self, found: str, right: str) -> bool:
        """Whether an answer that was found is the right one, or the same as another."""


def answers_of(kind: AnswerKind) -> Answers:
    """How answers of a kind are read and compared.

    Raises:
        ImportError: "math" needs the package math-verify, which is not installed.
    """
    if kind == "demo":
        return DemoAnswers()
    return ChoiceAnswers() if kind == "choice" else MathAnswers()


class DemoAnswers:
    """Integers in a box, as the demo's problems have."""

    def find(self, text: str) -> str | None:
        value = extract_answer(text)
        return None if value is None else str(value)

    def same(self, found: str, right: str) -> bool:
        return found == right


class ChoiceAnswers:
    """A letter: the one in the last box, or that the text says the answer is, or the last one."""

    def find(self, text: str) -> str | None:
        if _BOX in text:
            letter = _LETTER.search(text.rpartition(_BOX)[2])
            return None if letter is None else letter[1]
        for pattern in (_SAID, _BRACKETED, _LETTER):
            if letters := pattern.findall(text):
                return str(letters[-1]).upper()
        return None

    def same(self, found: str, right: str) -> bool:
        return found == right


class MathAnswers:
    """Numbers, expressions, sets and so on, compared by what they mean (math-verify)."""

    def __init__(self) -> None:
        with needs_package("math-verify", "eval"):
            import math_verify

        self._library = math_verify
        self._meaning = lru_cache(maxsize=4096)(self._parse)

    def find(self, text: str) -> str | None:
        parsed = self._parse(text)
        return str(parsed[-1]) if parsed else None

    def same(self, found: str, right: str) -> bool:
        if found == right:
            return True
        meant, wanted = self._meaning(_as_math(found)), self._meaning(_as_math(right))
        return bool(self._library.verify(wanted, meant, timeout_seconds=_time_limit()))

    def _parse(self, text: str) -> list[Any]:
        return list(self._library.parse(text, parsing_timeout=_time_limit()))


def _as_math(answer: str) -> str:
    """All of an answer as mathematics; some data sets mark only a part of it as that."""
    return f"${_DELIMITER.sub('', answer).rstrip('. ')}$"


def _time_limit() -> int | None:
    """Seconds that an expression may take; a signal keeps it, which only the main thread gets."""
    return _SECONDS if threading.current_thread() is threading.main_thread() else None
