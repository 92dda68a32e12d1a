"""What candidates cost: counts of a result against the passes that wrote its tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rsd_engine import Beam, Best, Engine, SamplingParams, Selection, Softmax, Threshold
from tests.engine.harness.runs import PROMPTS, generate
from tests.tiny_models import TinyModels

SLOTS = 12


@pytest.fixture(scope="module")
def fresh(tiny: TinyModels) -> Iterator[Engine]:
    """Every prompt is read, and with it one pass of every model writes nothing."""
    with Engine(
        **tiny.sources(), max_num_seqs=SLOTS, enable_prefix_caching=False, device="cpu"
    ) as engine:
        yield engine


@pytest.mark.parametrize(
    ("select", "count"), [(Best(), 3), (Softmax(5.0), 4), (Beam(2), 3), (Beam(4), 1), (Beam(3), 2)]
)
def test_every_pass_of_a_writer_wrote_a_token_that_is_counted(
    fresh: Engine, select: Selection, count: int
) -> None:
    params = SamplingParams(
        temperature=1.0, seed=3, max_tokens=30, policy=Threshold(0.5),
        step_candidates=count, select=select,
    )  # fmt: skip
    rewritten = 0
    for result in generate(fresh, PROMPTS, params):
        metrics, counts = result.metrics, result.metrics.candidates
        for writer in (metrics.draft, metrics.target):
            assert writer.tokens_generated + writer.tokens_discarded == writer.passes - 1
        [output] = result.outputs
        rewritten += metrics.target.passes - 1
        lost = sum(len(step.candidates) for step in output.steps)
        assert counts.lost >= lost
        assert counts.taken == len(output.steps)  # one of the draft for each, kept or rejected
        assert counts.made >= len(output.steps) * count
        if not isinstance(select, Beam):
            assert counts.lost == lost == len(output.steps) * (count - 1)
            assert counts.tokens_discarded == sum(
                len(one.token_ids) for step in output.steps for one in step.candidates
            )
    assert rewritten
