"""Where two runs of one request part, is it a tie within float rounding?

A product may sum in another order for another number of rows, so the last bits of a logit or a
reward may differ. That can change a result only at a tie: two best logits, or two of them with
their noise, a reward at the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from rsd_engine import Engine, RequestOutput, SamplingParams, Step, Threshold
from rsd_engine.steps.policies import Policy
from rsd_kernels.philox.twin import DrawKey, uniform
from rsd_kernels.state.enums import Purpose, Role
from tests.draw_oracle import Place, distribution, draw
from tests.engine.harness.runs import Fresh, decision

TIE = 1e-4


@dataclass(frozen=True)
class Where:
    """Keys of a draw."""

    seed: int
    sample: int
    num_steps: int


def differs_by_a_tie(
    engine: Engine, params: SamplingParams, first: RequestOutput, second: RequestOutput
) -> bool:
    """Looks at the first place where two runs of a request differ (there must be one)."""
    row = list(first.prompt_token_ids)
    pairs = zip_longest(first.outputs[0].steps, second.outputs[0].steps)
    for num_steps, (one, two) in enumerate(pairs):
        assert one is not None and two is not None, "one run goes on after the other's last step"
        if decision(one) != decision(two):
            where = Where(first.seed, 0, num_steps)
            return _tie_in_step(Fresh(engine), params, where, row, one, two)
        row += one.token_ids
    raise AssertionError("the two runs do not differ")


def _tie_in_step(
    fresh: Fresh, params: SamplingParams, where: Where, row: list[int], one: Step, two: Step
) -> bool:
    drafts = [step.rejected.token_ids if step.rejected else step.token_ids for step in (one, two)]
    if params.mode == "target" or (drafts[0] == drafts[1] and one.source == two.source == "target"):
        return _tie_in_tokens(fresh, Role.TARGET, params, where, row, one.token_ids, two.token_ids)
    if drafts[0] != drafts[1]:
        return _tie_in_tokens(fresh, Role.DRAFT, params, where, row, drafts[0], drafts[1])
    scored = one.rejected or one
    assert scored.reward is not None and params.policy is not None
    return _tie_in_decision(params.policy, where, len(row) + len(drafts[0]), scored.reward)


def _tie_in_decision(policy: Policy, where: Where, position: int, reward: float) -> bool:
    if isinstance(policy, Threshold):
        return abs(reward - policy.threshold) < TIE
    key = DrawKey(where.seed, where.sample, where.num_steps, position, Purpose.ACCEPT)
    u = uniform(key)
    return abs(u - policy.weight(reward)) < TIE


def _tie_in_tokens(
    fresh: Fresh,
    role: Role,
    params: SamplingParams,
    where: Where,
    row: list[int],
    one: tuple[int, ...],
    two: tuple[int, ...],
) -> bool:
    same = next(i for i, (a, b) in enumerate(zip_longest(one, two)) if a != b)
    row = [*row, *one[:same]]
    logits = fresh.logits(role, row)
    if params.temperature == 0:
        best = logits.topk(2).values
        return float(best[0] - best[1]) < TIE
    probabilities = distribution(
        logits.tolist(), params.temperature, max(0, params.top_k), params.top_p, params.min_p
    )
    place = Place(where.seed, where.sample, where.num_steps, len(row), role)
    return draw(probabilities, place).gap < TIE
