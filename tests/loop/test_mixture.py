"""Kept steps follow the paper's mixture: w(r) P_draft + (1 - E[w]) P_target (section 3)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from scipy.stats import chisquare

from rsd_engine.core.events import StepDecided
from rsd_engine.steps.policies import Clip, Constant, Logistic, Policy, Sigmoidal, Threshold
from rsd_kernels.state.enums import RecordKind
from tests.loop.toy import NUM_IDS, decode, encode, run, toy_core, toy_request

STEPS = 8
CHAINS = 256
DELIMITERS = (".", "g", "h", "i")
FIRST = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
SECOND = {"e": 0.7, "f": 0.3}
TARGET = {"g": 0.5, "h": 0.25, "i": 0.25}
REWARD = {"ae": 0.95, "af": 0.6, "be": 0.75, "bf": 0.3, "ce": 0.5, "cf": 0.1, "de": 0.85, "df": 0.0}
POLICIES: list[Policy] = [
    Constant(0.6), Threshold(0.7), Clip(), Sigmoidal(), Logistic(6.0, 0.5),
]  # fmt: skip


def _logits(distribution: dict[str, float]) -> list[float]:
    logits = [-30.0] * NUM_IDS
    for char, probability in distribution.items():
        logits[encode(char)[0]] = math.log(probability)
    return logits


def draft(row: tuple[int, ...]) -> list[float]:
    """Two letters and a full stop. The target's steps are shorter, so that a next draft stands
    where the noise has just been rejected: its first letter where the second one stood."""
    step = re.split("[.ghi:]", decode(row).replace("ab", ":", 1))[-1]
    return _logits([FIRST, SECOND, {".": 1.0}][len(step)])


def target(row: tuple[int, ...]) -> list[float]:
    """One letter, which is a delimiter itself."""
    return _logits(TARGET)


def score(row: tuple[int, ...]) -> float:
    return REWARD[decode(row).split("|")[-2]]


def expected(policy: Policy) -> dict[str, float]:
    drafted = {x + y: p * q for x, p in FIRST.items() for y, q in SECOND.items()}
    kept = {text: policy.weight(REWARD[text]) * p for text, p in drafted.items()}
    fallback = 1.0 - sum(kept.values())
    return kept | {text: fallback * p for text, p in TARGET.items()}


def chains(policy: Policy) -> Iterator[list[tuple[str, bool]]]:
    """Of each chain, its kept steps and whether the draft's try was rejected first."""
    core = toy_core(draft, target, score, num_slots=16, num_pages=4000)
    requests = [
        toy_request(
            temperature=1.0,
            seed=seed,
            max_steps=STEPS,
            policy=policy.columns(),
            delimiters=DELIMITERS,
        )
        for seed in range(CHAINS)
    ]
    for events in run(core, requests).values():
        steps: list[tuple[str, bool]] = []
        rejected = False
        for event in events:
            if isinstance(event, StepDecided):
                if event.kind == RecordKind.KEPT:
                    steps.append((decode(event.token_ids).rstrip("."), rejected))
                rejected = event.kind == RecordKind.REJECTED
        assert len(steps) == STEPS
        yield steps


def p_value(counts: Counter[str], probabilities: dict[str, float]) -> float:
    total = sum(counts.values())
    likely = {text: p for text, p in probabilities.items() if p * total >= 1e-9}
    assert set(counts) <= set(likely), "a step that the mixture excludes was kept"
    observed = [counts[text] for text in likely]
    return float(chisquare(observed, [p * total for p in likely.values()]).pvalue)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_kept_steps_follow_the_mixture(policy: Policy) -> None:
    everywhere: Counter[str] = Counter()
    after_rejection: Counter[str] = Counter()
    late: Counter[str] = Counter()
    for steps in chains(policy):
        everywhere.update(text for text, _ in steps)
        late.update(text for text, _ in steps[5:])
        pairs = pairwise(steps)
        after_rejection.update(text for (_, rejected), (text, _) in pairs if rejected)
    probabilities = expected(policy)
    assert sum(after_rejection.values()) > 200
    assert p_value(everywhere, probabilities) > 0.001
    assert p_value(late, probabilities) > 0.001
    assert p_value(after_rejection, probabilities) > 0.001
