"""Micro-benchmarks of the CPU path: `pytest bench/ --benchmark-only`.

Loop ops and a forward pass in the shapes of the demo draft, with random weights and 16 slots of 200
tokens: what a tick of the loop costs besides arithmetic. No checkpoint is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

from bench.kernels.loop_op_state import plain_tables
from rsd_engine.memory.page_pool import KVShape, PagedKV, PagePool
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.weights import DecoderWeights
from rsd_kernels import ops
from rsd_kernels.attention.twin import attention_map, paged_attention
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.reward.loop_twin import decide as decide_by_twin
from rsd_kernels.state.enums import Phase, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState

CPU = torch.device("cpu")
NUM_SLOTS, LENGTH, STEP, PAGE, VOCAB = 16, 200, 20, 16, 960
TOKENS_PER_PAGE = (PAGE, PAGE, PAGE)
ROUNDS: dict[str, Any] = {"rounds": 200, "warmup_rounds": 10}


@dataclass(frozen=True)
class MidStep:
    """Slots in the middle of a step, each with one row to read."""

    state: SlotState
    batch: RowBatch

    @property
    def rows(self) -> RowBatch:
        return self.batch.narrow(NUM_SLOTS, NUM_SLOTS, NUM_SLOTS)

    def rewind(self) -> Callable[[], None]:
        """A function that restores the state as it is now."""
        kept = {f.name: getattr(self.state, f.name).clone() for f in fields(self.state)}

        def restore() -> None:
            for name, value in kept.items():
                getattr(self.state, name).copy_(value)

        return restore


@pytest.fixture
def mid_step() -> MidStep:
    sizes = SlotSizes(NUM_SLOTS, 512, 1024, 64, 4096, 2**16)
    state = SlotState.allocate(sizes, CPU)
    state.length.fill_(LENGTH)
    state.committed.fill_(LENGTH - STEP)
    state.prm_length.fill_(LENGTH + 4)
    state.prm_keep.fill_(LENGTH + 4)
    state.prm_committed.fill_(LENGTH - STEP)
    state.length_limit.fill_(500)
    state.max_steps.fill_(100)
    state.max_step_tokens.fill_(400)
    state.phase.fill_(Phase.DRAFT)
    state.active.fill_(1)
    state.arrival.copy_(torch.arange(NUM_SLOTS))
    state.num_logprobs.fill_(-1)
    state.stop_tokens.fill_(-1)
    state.repetition_penalty.fill_(1.0)
    state.policy_kind.fill_(PolicyKind.THRESHOLD)
    state.policy_a.fill_(0.7)
    state.tick_cap.fill_(10**9)
    state.tokens.random_(VOCAB)
    state.kv_len[Role.DRAFT] = LENGTH - 1
    batch = RowBatch.allocate(256, NUM_SLOTS, CPU)
    ops.schedule(state, batch, TOKENS_PER_PAGE)
    return MidStep(state, batch)


def test_schedule(benchmark: Any, mid_step: MidStep) -> None:
    benchmark(ops.schedule, mid_step.state, mid_step.batch, TOKENS_PER_PAGE)
    assert int(mid_step.state.num_rows) == NUM_SLOTS


def test_sample_append_greedy(benchmark: Any, mid_step: MidStep) -> None:
    logits = torch.randn(NUM_SLOTS, VOCAB)
    restore, arguments = mid_step.rewind(), (mid_step.rows, logits, plain_tables(VOCAB), Role.DRAFT)
    write = lambda: ops.sample_append(mid_step.state, *arguments)  # noqa: E731
    benchmark.pedantic(write, setup=restore, **ROUNDS)
    assert mid_step.state.tokens[:, LENGTH].tolist() == logits.argmax(-1).tolist()
    assert mid_step.state.length.tolist() == [LENGTH + 1] * NUM_SLOTS


@pytest.mark.parametrize("vocabulary", [49_152, 152_064])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.0, 0, 1.0), (0.7, 0, 1.0), (0.7, 20, 1.0), (0.7, 0, 0.9)],
    ids=["greedy", "plain", "top-k 20", "top-p 0.9"],
)
def test_draw_of_one_slot(
    benchmark: Any, mid_step: MidStep, vocabulary: int, temperature: float, top_k: int, top_p: float
) -> None:
    state, batch = mid_step.state, mid_step.batch.narrow(1, 1, 1)
    state.num_seqs.fill_(1)
    state.num_places.fill_(1)
    for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
        getattr(state, name).fill_(value)
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    arguments = (batch, logits, plain_tables(vocabulary), Role.TARGET)
    write = lambda: ops.sample_append(state, *arguments)  # noqa: E731
    benchmark.pedantic(write, setup=mid_step.rewind(), **ROUNDS)
    assert int(state.length[batch.seq_slot[0]]) == LENGTH + 1


@pytest.mark.parametrize("reward", [0.9, 0.1], ids=["keep", "reject"])
def test_decide(benchmark: Any, mid_step: MidStep, reward: float) -> None:
    restore = mid_step.rewind()
    rewards = torch.full((NUM_SLOTS,), reward)
    decide = lambda: decide_by_twin(  # noqa: E731
        mid_step.state, mid_step.rows, rewards, TOKENS_PER_PAGE
    )
    benchmark.pedantic(decide, setup=restore, **ROUNDS)
    expected = Phase.DRAFT if reward > 0.7 else Phase.TARGET
    assert mid_step.state.phase.tolist() == [expected] * NUM_SLOTS


def test_paged_attention(benchmark: Any, mid_step: MidStep) -> None:
    kv = _kv(KVShape(1, 2, 32, torch.float32))
    q = torch.randn(NUM_SLOTS, 2, 32)
    out = torch.full_like(q, torch.nan)
    table = mid_step.state.page_table[Role.DRAFT]
    keys = attention_map(mid_step.rows, table, kv.tokens_per_page, None, q.dtype)
    benchmark(paged_attention, q, kv.k[0], kv.v[0], keys, scale=32**-0.5, out=out)
    assert bool(out.isfinite().all())


def test_decode_pass(benchmark: Any, mid_step: MidStep) -> None:
    model = _draft()
    kv = _kv(KVShape(3, 2, 32, torch.float32))
    logits = torch.full((NUM_SLOTS, VOCAB), torch.nan)
    benchmark(model.logits, mid_step.rows, kv, mid_step.state.page_table[Role.DRAFT], logits)
    assert bool(logits.isfinite().all())


def _kv(shape: KVShape) -> PagedKV:
    """Pages of PAGE tokens, all zeros."""
    pool = PagePool(4096, PAGE * shape.bytes_per_token, CPU)
    pool.buffer.zero_()
    return pool.view(shape)


def _draft() -> LanguageModel:
    """A decoder of the demo draft's shape with random weights."""
    config = ModelConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }
    )
    weights = DecoderWeights.allocate(config, torch.float32, CPU)
    for tensor in weights.places(config).values():
        tensor.normal_(0, 0.1)
    return LanguageModel(Decoder(config, weights, max_rows=256), weights.tied_head())
