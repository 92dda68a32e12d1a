"""A rejected step leaves KV, page tables and random state as if it had never been."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.engine.prompts import resolve_prompt
from rsd_engine.engine.requests.slots import slot_request
from rsd_kernels.state.enums import Phase, Role
from tests.engine.harness.runs import PROMPTS
from tests.page_checks import check_integrity
from tests.tiny_models import TinyModels

SLOT = 0
PARAMS = SamplingParams(temperature=1.0, seed=9, max_tokens=30, logprobs=0)


@pytest.fixture
def lone(tiny: TinyModels) -> Iterator[Engine]:
    """One slot, one tick per launch, every step rejected."""
    with Engine(**tiny.sources(), policy=Threshold(1.1), max_num_seqs=1, device="cpu") as engine:
        engine.parts.core.ticks_per_launch = 1
        yield engine


def start(engine: Engine, prompt: str, params: SamplingParams) -> None:
    resolved = resolve_prompt(prompt, engine.get_tokenizer())
    assert params.seed is not None
    request = slot_request(resolved, params, engine.parts.rules, seed=params.seed)
    engine.parts.core.add(0, request)


def run_to(engine: Engine, phase: Phase) -> None:
    core = engine.parts.core
    for _ in range(400):
        core.next_events()
        check_integrity(core.state, core.loop.tokens_per_page)
        if int(core.state.phase[SLOT]) == phase:
            return
    raise AssertionError(f"the slot never reached {phase!r}")


def cursors(engine: Engine) -> dict[str, object]:
    """Everything of the slot that later ticks read; counters and the draft's noise left out."""
    state = engine.parts.core.state
    length, prm_length = int(state.length[SLOT]), int(state.prm_length[SLOT])
    return {
        "length": length,
        "committed": int(state.committed[SLOT]),
        "prm_length": prm_length,
        "prm_committed": int(state.prm_committed[SLOT]),
        "num_steps": int(state.num_steps[SLOT]),
        "stop_state": int(state.stop_state[SLOT]),
        "delimiter_state": int(state.delimiter_state[SLOT]),
        "match_bytes": int(state.match_bytes[SLOT]),
        "finish": int(state.finish[SLOT]),
        "tokens": state.tokens[SLOT, :length].tolist(),
        "prm_tokens": state.prm_tokens[SLOT, :prm_length].tolist(),
        "kv_len": state.kv_len[:, SLOT].tolist(),
        "num_pages": state.num_pages[:, SLOT].tolist(),
        "pages": [
            state.page_table[role, SLOT, : int(state.num_pages[role, SLOT])].tolist()
            for role in Role
        ],
        "num_free": int(state.num_free),
    }


def kv_content(engine: Engine, role: Role) -> Tensor:
    """K and V of every token the role has read, [tokens, layers * 2, heads, head_dim]."""
    built = engine.parts
    state = built.core.state
    kv = built.pool.view(built.models.kv_shapes[role])
    position = torch.arange(int(state.kv_len[role, SLOT]))
    page = state.page_table[role, SLOT].long()[position // kv.tokens_per_page]
    offset = position % kv.tokens_per_page
    planes = [plane[page, offset] for pair in zip(kv.k, kv.v, strict=True) for plane in pair]
    return torch.stack(planes, dim=1)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_stands_after_a_rejection_stood_before_the_step(lone: Engine, prompt: str) -> None:
    """From the first DRAFT tick on, a rejection never changes the committed part of the state."""
    start(lone, prompt, PARAMS)
    core = lone.parts.core
    run_to(lone, Phase.SCORE)
    before = {role: kv_content(lone, role) for role in Role}
    committed, prm_committed = int(core.state.committed[SLOT]), int(core.state.prm_committed[SLOT])
    run_to(lone, Phase.TARGET)
    after = cursors(lone)
    assert after["length"] == after["committed"] == committed
    assert after["prm_length"] == after["prm_committed"] == prm_committed
    assert after["num_steps"] == 0 and after["finish"] == 0 and after["delimiter_state"] == 0
    assert after["stop_state"] == 0
    # The draft keeps the prompt, the PRM its prompt; the target, which lags, keeps its lag.
    assert after["kv_len"] == [committed, 0, prm_committed]
    content = kv_content(lone, Role.DRAFT)
    assert torch.equal(content, before[Role.DRAFT][: len(content)])
    # The PRM read prompt and step in one pass; of that, the prompt stays.
    assert len(kv_content(lone, Role.PRM)) == prm_committed
    core.abort(0)


def test_the_target_goes_on_as_if_it_had_written_directly(lone: Engine, tiny: TinyModels) -> None:
    """After each rejected draft the target's tokens, KV and pages are those of the target alone."""
    with Engine(**tiny.sources(), max_num_seqs=1, device="cpu") as other:
        other.parts.core.ticks_per_launch = 1
        alone = other.generate(
            PROMPTS[2], SamplingParams(**{**vars(PARAMS), "mode": "target"}), use_tqdm=False
        )[0]
    [after_rejections] = lone.generate(PROMPTS[2], PARAMS, use_tqdm=False)
    mine, theirs = after_rejections.outputs[0], alone.outputs[0]
    assert after_rejections.metrics.steps_rejected == len(mine.steps) > 2
    assert mine.token_ids == theirs.token_ids
    assert mine.logprobs is not None and theirs.logprobs is not None
    for token, one, two in zip(mine.token_ids, mine.logprobs, theirs.logprobs, strict=True):
        assert one[token].logprob == pytest.approx(two[token].logprob, abs=1e-5)


def test_target_kv_is_that_of_the_target_alone(lone: Engine, tiny: TinyModels) -> None:
    start(lone, PROMPTS[2], PARAMS)
    with Engine(**tiny.sources(), max_num_seqs=1, device="cpu") as other:
        other.parts.core.ticks_per_launch = 1
        start(other, PROMPTS[2], SamplingParams(**{**vars(PARAMS), "mode": "target"}))
        compared = 0
        while compared < 3:
            # Both stop where the target has just written a step.
            steps = int(lone.parts.core.state.num_steps[SLOT])
            while int(lone.parts.core.state.num_steps[SLOT]) == steps:
                lone.parts.core.next_events()
            while int(other.parts.core.state.num_steps[SLOT]) == steps:
                other.parts.core.next_events()
            mine, theirs = cursors(lone), cursors(other)
            for name in ("length", "committed", "num_steps", "tokens"):
                assert mine[name] == theirs[name], name
            content = kv_content(lone, Role.TARGET)
            assert content.shape == kv_content(other, Role.TARGET).shape
            assert torch.allclose(content, kv_content(other, Role.TARGET), atol=1e-5)
            compared += 1
        lone.parts.core.abort(0)
        other.parts.core.abort(0)
