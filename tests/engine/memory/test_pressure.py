"""More requests than the pool can hold: some wait, some are preempted, all give the same."""

from __future__ import annotations

import pytest

from rsd_engine import Engine, SamplingParams
from tests.engine.harness.runs import all_pages_free, decisions, generate
from tests.engine.oracles.ties import differs_by_a_tie
from tests.engine.test_independence import mixed_requests
from tests.tiny_models import TinyModels


def test_a_small_pool_gives_the_same_results(tiny: TinyModels) -> None:
    prompts, params = mixed_requests(12, max_tokens=60)
    options = {"max_num_seqs": 8, "max_model_len": 128, "device": "cpu"}
    with Engine(**tiny.sources(), **options) as roomy:  # type: ignore[arg-type]
        wanted = generate(roomy, prompts, params)
        assert roomy.num_preemptions == 0
        one_request = roomy.parts.core.state.free_pages.shape[0] // 8
        page_bytes = roomy.parts.pool.page_bytes
    options["kv_cache_memory_bytes"] = one_request * page_bytes
    with Engine(**tiny.sources(), **options) as tight:  # type: ignore[arg-type]
        results = generate(tight, prompts, params)
        assert tight.num_preemptions > 0
        assert all_pages_free(tight)
        for i, (result, other) in enumerate(zip(results, wanted, strict=True)):
            same = decisions(result) == decisions(other)
            assert same or differs_by_a_tie(tight, params[i], result, other)
    read = sum(r.metrics.draft.tokens_read for r in results)
    assert read > sum(r.metrics.draft.tokens_read for r in wanted)  # some were read again


@pytest.mark.parametrize("slots", [1, 3])
def test_more_requests_than_slots(tiny: TinyModels, slots: int) -> None:
    params = [SamplingParams(temperature=1.0, seed=s, max_tokens=8) for s in range(10)]
    with Engine(**tiny.sources(), max_num_seqs=slots, device="cpu") as engine:
        results = generate(engine, ["ab"] * 10, params)
    assert [r.seed for r in results] == list(range(10))
    assert len({r.outputs[0].token_ids for r in results}) > 5
