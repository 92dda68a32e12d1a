"""The loop's program on CUDA tensors: every op of every body, in real shapes, but for the kernels.

Run by `test_cuda_program.py`. The tensors have no memory, so 7B models fit; what an op does on
its way to a launch (checks, views, products by cuBLAS) is what it does on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from rsd_engine.engine.build import _decide, _read, _write
from rsd_engine.loop.program import Call, calls
from rsd_engine.loop.rsd import Loop, build_program
from rsd_engine.memory.page_pool import PagePool
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.reward_heads import REWARD_HEADS
from rsd_engine.models.weights import DecoderWeights
from rsd_engine.roofline.presets import PRESETS
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import MergeTables, StepTables
from tests.fake_cuda.tensors import DEVICE, Work, fake_cuda_tensors

# A launcher that looks at an address gets 0, which is aligned.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

NUM_IDS = 151665
BUCKETS = (1, 4, 16, 64, 256)
SLOTS = 32
DTYPE = torch.bfloat16
SMALL = "qwen2.5-1.5b"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    found = Work()
    with fake_cuda_tensors(monkeypatch, found):
        yield found


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def decoder(name: str) -> Decoder:
    config = replace(ModelConfig.from_dict(PRESETS[name]), max_position_embeddings=4096)
    weights = DecoderWeights.allocate(config, DTYPE, DEVICE)
    return Decoder(config, weights, max_rows=BUCKETS[-1])


def language_model(name: str) -> LanguageModel:
    made = decoder(name)
    head = made.weights.embedding
    if not made.config.tie_word_embeddings:
        head = empty(*head.shape, dtype=DTYPE)
    return LanguageModel(made, head)


def reward_model(name: str) -> RewardModel:
    made = decoder(name)
    head = REWARD_HEADS[made.config.architecture].allocate(made.config, DTYPE, DEVICE)
    return RewardModel(made, head)


def slot_state() -> SlotState:
    sizes = SlotSizes(
        num_slots=SLOTS, max_len=4096, prm_max_len=8192, pages_per_role=512, num_pages=4096,
        log_words=1 << 20, row_buckets=BUCKETS,
    )  # fmt: skip
    shapes = SlotState.allocate(sizes, torch.device("meta"))
    state = replace(
        shapes,
        **{
            f.name: empty(*getattr(shapes, f.name).shape, dtype=getattr(shapes, f.name).dtype)
            for f in fields(shapes)
        },
    )
    # Read once, when a program is built.
    state.row_buckets.tolist = lambda: list(BUCKETS)  # type: ignore[method-assign]
    return state


def program(prm: str) -> list[Call]:
    """All calls of a program over a 1.5B draft, a 7B target and this PRM."""
    pool, state = PagePool(4096, 1 << 20, DEVICE), slot_state()
    logits = empty(SLOTS, NUM_IDS, dtype=torch.float32)
    models = {
        Role.DRAFT: language_model(SMALL),
        Role.TARGET: language_model("qwen2.5-7b"),
        Role.PRM: reward_model(prm),
    }
    kv = {role: pool.view(model.config.kv_shape(DTYPE)) for role, model in models.items()}
    forwards: dict[Role, Callable[[RowBatch], None]] = {
        role: partial(_write, model, kv[role], state.page_table[role], logits)
        for role, model in models.items()
        if isinstance(model, LanguageModel)
    }
    scorer = models[Role.PRM]
    assert isinstance(scorer, RewardModel)
    forwards[Role.PRM] = partial(_read, scorer, kv[Role.PRM], state.page_table[Role.PRM])
    tokens = (kv[Role.DRAFT].tokens_per_page, kv[Role.TARGET].tokens_per_page)
    tokens_per_page = (*tokens, kv[Role.PRM].tokens_per_page)
    byte, long = torch.uint8, torch.int64
    loop = Loop(
        state=state,
        batch=RowBatch.allocate(BUCKETS[-1], SLOTS, DEVICE),
        tables=StepTables(
            empty(1 << 20, dtype=byte), empty(NUM_IDS + 1), empty(NUM_IDS), empty(100), empty(100),
            empty(NUM_IDS), empty(1),
        ),
        merges=MergeTables(
            empty(NUM_IDS, dtype=byte), empty(256), empty(1000, dtype=long), empty(1000),
            empty(1000),
        ),
        tokens_per_page=tokens_per_page,
        forwards=forwards,
        decide=_decide(scorer, state, tokens_per_page),
        logits=logits,
    )  # fmt: skip
    assert {model.decoder.ops.backend for model in models.values()} == {"triton"}
    return list(calls(build_program(loop)))


def kernels(work: Work) -> Counter[str]:
    return Counter(launch.kernel.__name__ for launch in work.launches)


@pytest.mark.parametrize("prm", ["skywork-prm-1.5b", "qwen2.5-math-prm-7b"])
def test_every_op_reaches_the_device_and_allocates_nothing(prm: str, work: Work) -> None:
    """A read by the host would raise: these tensors have no values."""
    ops = program(prm)
    for op in ops:
        before = len(work.launches)
        op.fn()
        assert len(work.launches) > before, f"{op.name} launched nothing"
    taken = work.allocations  # scratch, taken once in the warm-up
    for op in ops:
        op.fn()
        assert work.allocations == taken, f"{op.name} allocates"


def test_launches_of_a_decode_pass(work: Work) -> None:
    """What a token of the draft costs in launches: six a layer, and none by cuBLAS."""
    forward, *tail = [op for op in program("skywork-prm-1.5b") if op.name.startswith("DRAFT")][:5]
    work.launches.clear()
    forward.fn()
    layers = int(PRESETS[SMALL]["num_hidden_layers"])
    assert kernels(work) == {
        "_embed_kernel": 1,
        "_qkv_projection_kernel": layers,
        "_attend_kernel": layers,
        "_combine_kernel": layers,
        "_projection_kernel": 3 * layers + 1,
        "_rms_norm_kernel": 1,
    }
    assert not work.products
    work.launches.clear()
    for op in tail:
        op.fn()
    assert [op.name.split(".")[1] for op in tail] == [
        "advance", "sample_append", "bridge", "end_step"
    ]  # fmt: skip
    assert sum(kernels(work).values()) == 7


def test_more_rows_than_a_tile_are_products_by_cublas(work: Work) -> None:
    rows = BUCKETS.index(64)
    forward = [op for op in program("skywork-prm-1.5b") if op.name == "TARGET.forward"][rows]
    work.launches.clear()
    forward.fn()
    config = PRESETS["qwen2.5-7b"]
    layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
    assert Counter(work.products)[(64, hidden)] == 2 * layers  # o and down
    # Norm and product of q, k and v are two launches then; 32 sequences are more than a tile, too.
    assert len(work.products) == 4 * layers + 1
    assert work.products[-1] == (SLOTS, NUM_IDS)


def test_these_tensors_tell_what_a_gpu_would(work: Work) -> None:
    """What the tests above rely on."""
    flag = empty(1)
    for read in (int, bool, Tensor.item, Tensor.tolist, Tensor.cpu):
        with pytest.raises((RuntimeError, AssertionError)):
            read(flag)
    assert work.allocations == 1
    flag.view(1)[0:1]
    assert work.allocations == 1
    assert (flag + flag).is_cuda
    assert work.allocations == 2
    rows, weight = empty(32, 64, dtype=DTYPE), empty(100, 64, dtype=DTYPE)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.mm(rows, weight, out=empty(32, 100, dtype=DTYPE))
