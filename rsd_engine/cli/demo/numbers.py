"""The numbers of a comparison: as JSON, and in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rsd_engine.cli.demo.comparison import AT_ONCE, Comparison, Measured

if TYPE_CHECKING:
    from rsd_engine.outputs import RoleMetrics


def to_json(found: Comparison) -> str:
    """One line: the conditions, then the numbers of each mode, then the reading."""
    values = {
        "problems": len(found.problems),
        "seed": found.seed,
        "threshold": found.threshold,
        "device": found.device,
        "threads": found.threads,
        "at_once": AT_ONCE,
        "prefix_cache": False,
        "modes": {mode: _numbers(one) for mode, one in found.modes.items()},
        "reading": reading(found),
        "why_slower": why_slower(found),
    }
    return json.dumps(values)


def _numbers(one: Measured) -> dict[str, Any]:
    metrics = one.metrics
    return {
        "right": one.right,
        "accuracy": one.right / len(one.results),
        "draft_tokens_written": written(metrics.draft),
        "target_tokens_written": written(metrics.target),
        "prm_tokens_read": metrics.prm.tokens_read,
        "steps_accepted": metrics.steps_accepted,
        "steps_rejected": metrics.steps_rejected,
        "flops_generated": metrics.flops.generated,
        "flops_all": metrics.flops.all,
        "passes": {
            "draft": metrics.draft.passes,
            "target": metrics.target.passes,
            "prm": metrics.prm.passes,
        },
        "seconds_one_at_a_time": one.seconds,
        "seconds_at_once": one.seconds_at_once,
    }


def written(role: RoleMetrics) -> int:
    """Tokens that a model wrote, those that were discarded too."""
    return role.tokens_generated + role.tokens_discarded


def reading(found: Comparison) -> str:
    """A sentence: what RSD got right, and at what share of the target's costs."""
    draft, target, rsd = (found.modes[mode] for mode in ("draft", "target", "rsd"))
    ours, theirs = rsd.metrics, target.metrics
    costs = (
        (written(ours.target), written(theirs.target), "the tokens by the target"),
        (ours.flops.generated, theirs.flops.generated, "the FLOPs"),
        (rsd.seconds, target.seconds, "the seconds one at a time"),
        (rsd.seconds_at_once, target.seconds_at_once, f"the seconds {AT_ONCE} at once"),
    )
    *shares, last = [f"{a / b:.0%} of {name}" if b else f"{a} of {name}" for a, b, name in costs]
    return (
        f"RSD got {rsd.right} of {len(found.problems)} right (target alone {target.right}, draft "
        f"alone {draft.right}) for {', '.join(shares)} and {last} that the target alone took."
    )


def why_slower(found: Comparison) -> str | None:
    """Where RSD took longer than the target alone, and what it does more; None if nowhere."""
    rsd, target = found.modes["rsd"], found.modes["target"]
    slower = [
        name
        for name, ours, theirs in (
            ("one at a time", rsd.seconds, target.seconds),
            (f"{AT_ONCE} at once", rsd.seconds_at_once, target.seconds_at_once),
        )
        if ours > theirs
    ]
    if not slower:
        return None
    ours, theirs = rsd.metrics, target.metrics
    passes = [role.passes for role in (ours.draft, ours.target, ours.prm)]
    return (
        f"RSD is slower here {' and '.join(slower)}: it made {sum(passes)} passes of three models "
        f"(draft {passes[0]}, target {passes[1]}, PRM {passes[2]}), the target alone "
        f"{theirs.target.passes}. A pass of a small model takes time that its FLOPs do not show, "
        "and the target and the PRM also read what the draft wrote."
    )
