"""Made-up records of answers, as `rsd eval` writes them."""

from __future__ import annotations

import random
from typing import Any

HOSTILE = (
    "Then <script>document.title = 'run'</script> & &lt;b&gt;</script><!-- "
    "<img src=x onerror=\"document.title = 'run'\">"
)


def step(
    text: str,
    reward: float | None = 0.9,
    *,
    rejected: tuple[str, float | None] | None = None,
    source: str | None = None,
    candidates: tuple[tuple[str, float], ...] = (),
) -> dict[str, Any]:
    """A step; that of a rewrite is the target's and has no reward."""
    return {
        "text": text,
        "source": source or ("draft" if rejected is None else "target"),
        "reward": reward if rejected is None else None,
        "rejected": None if rejected is None else {"text": rejected[0], "reward": rejected[1]},
        "candidates": [{"text": t, "source": "draft", "reward": r} for t, r in candidates],
    }


def record(
    question: str,
    steps: list[dict[str, Any]],
    *,
    text: str = "How many?",
    correct: bool = True,
    method: str = "rsd",
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    return {
        "question": {
            "id": question, "text": text, "answer": "7", "source": "made up", "kind": "math"
        },
        "method": method,
        "settings": {"threshold": 0.7} if settings is None else settings,
        "seed": 0,
        "text": "".join(step["text"] for step in steps),
        "found": "7" if correct else "8",
        "correct": correct,
        "finish_reason": "stop",
        "steps": steps,
        "counts": {
            "draft_tokens": 30, "target_tokens": 10, "discarded_tokens": 5, "prm_tokens_read": 60,
            "steps_accepted": sum(not step["rejected"] for step in steps),
            "steps_rejected": sum(bool(step["rejected"]) for step in steps),
            "flops_generated": 10**9, "flops_all": 10**10,
        },
        "seconds": 0.5,
        "role_seconds": {"draft": 0.1, "target": 0.25, "prm": 0.05},
        **more,
    }  # fmt: skip


STEPS = [
    step("We add.", 0.95),
    step("2 plus 3 is 5.", rejected=("2 plus 3 is 6.", 0.4)),
    step("It is 7.", 0.75, candidates=(("It is 9.", 0.2),)),
]


def three_answers() -> list[dict[str, Any]]:
    """In a file's order: no rejection, two of them, one; the second is wrong and by the target."""
    wrong = [step("a", rejected=("b", 0.6)), step("c", rejected=("d", 0.1))]
    return [
        record("q1", [step("fine", 0.9), step("finer", 0.8)], text="Apples?"),
        record("q2", wrong, text="Pears?", correct=False, method="other", settings={}),
        record("q3", STEPS, text="Plums?"),
    ]


def many_records(count: int) -> list[dict[str, Any]]:
    """Answers of about ten steps and 1,500 characters, a third of whose steps were rewritten."""
    draw = random.Random(0)
    words = ["so", "the", "total", "is", "now", "half", "of", "each", "group", "left", "over"]

    def text() -> str:
        a, b = draw.randint(2, 30), draw.randint(2, 30)
        return f"{' '.join(draw.choices(words, k=24))} \\({a} \\times {b} = {a * b}\\).\n\n"

    def one(number: int) -> dict[str, Any]:
        rewards = [round(draw.random() ** 0.3, 4) for _ in range(draw.randint(6, 14))]
        steps = [
            step(text(), r) if r >= 0.7 else step(text(), rejected=(text(), r)) for r in rewards
        ]
        return record(f"q{number:05}", steps, text=text(), correct=draw.random() < 0.7)

    return [one(number) for number in range(count)]
