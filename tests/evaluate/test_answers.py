"""Answers: found in a text, and compared."""

from __future__ import annotations

import sys
import threading

import pytest

from rsd_engine.evaluate.answers import ChoiceAnswers, DemoAnswers, MathAnswers, answers_of


def test_each_kind_has_its_own() -> None:
    assert isinstance(answers_of("demo"), DemoAnswers)
    assert isinstance(answers_of("choice"), ChoiceAnswers)
    assert isinstance(answers_of("math"), MathAnswers)


def test_the_demo_s_answers() -> None:
    answers = DemoAnswers()
    assert answers.find("It is \\boxed{4}. No: \\boxed{ 1,250 }.") == "1250"
    assert answers.find("It is 4.") is None
    assert answers.same("4", "4") and not answers.same("4", "40")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{B}", "B"),
        ("(A) is wrong, so \\boxed{\\text{(C) 12}}.", "C"),
        ("\\boxed{12}, which is (B)", "B"),
        ("\\boxed{12}", None),
        ("A triangle has (A) 3 sides. The answer is (D).", "D"),
        ("the answer is: b", "B"),
        ("(A) no, (B) yes", "B"),
        ("so D", "D"),
        ("no idea", None),
        ("", None),
    ],
)
def test_letters(text: str, found: str | None) -> None:
    assert ChoiceAnswers().find(text) == found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}}.", "0.5"),
        ("\\boxed{1,250}", "1250"),
        ("x = 3 and so \\boxed{18}", "18"),
        ("the result is 18", "18"),
        ("\\boxed{(3, \\frac{\\pi}{2})}", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}"),
        ("\\boxed{p - q}", "-q + p"),
        ("\\boxed{[-2, 1)}", "$[-2,1)$"),
        ("\\boxed{32348}", "\\$32,\\!348"),
        ("\\boxed{\\$18.90}", "18.9"),
        ("\\boxed{20 cm^{2}}", "20 $cm^{2}$"),
        ("\\boxed{(2, 3)}", "$(2,3)$."),
    ],
)
def test_what_means_the_same_is_right(text: str, answer: str) -> None:
    answers = MathAnswers()
    found = answers.find(text)
    assert found is not None and answers.same(found, answer)
    assert not answers.same(found, "17")


def test_no_mathematics_is_no_answer() -> None:
    assert MathAnswers().find("I do not know.") is None


def test_answers_are_compared_in_any_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(MathAnswers().same("0.5", "\\frac12")))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r'needs math-verify.*pip install "rsd-engine\[eval\]"'):
        answers_of("math")
