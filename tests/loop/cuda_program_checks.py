"""The loop's program on CUDA tensors: every op of every body, in real shapes, but for the kernels.

Run by `test_cuda_program.py`. The tensors have no memory, so 7B models fit; what an op does on
its way to a launch (checks, views, products by cuBLAS) is what it does on a GPU. The layers of a
model are alike, so a first, a middle and a last one stand for all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rsd_engine.loop.program import Call, calls
from rsd_engine.loop.rsd import Loop, build_program
from rsd_engine.memory.page_pool import PagePool
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.registry import find_reward_family, reward_family
from rsd_engine.models.weights import DecoderWeights
from rsd_engine.roofline.presets import PRESETS
from rsd_kernels import ops
from rsd_kernels.aot.memoryless import DEVICE, Work, memoryless_cuda
from rsd_kernels.cuda import decode_projection
from rsd_kernels.cuda import library as cuda_library
from rsd_kernels.cuda.library import Projection
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.model_ops import triton_ops
from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.reward.heads import ClassesHead
from rsd_kernels.state.enums import ConfidenceKind, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import MergeTables, StepTables

NUM_IDS = 151665
BUCKETS = (1, 4, 16, 64, 256)
SLOTS = 32
DTYPE = torch.bfloat16
SMALL = "qwen2.5-1.5b"
LAYERS = 3


@pytest.fixture
def work() -> Iterator[Work]:
    with memoryless_cuda() as found:
        yield found


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def decoder(name: str) -> Decoder:
    config = ModelConfig.from_dict({**PRESETS[name], "num_hidden_layers": LAYERS})
    config = replace(config, max_position_embeddings=4096)
    weights = DecoderWeights.allocate(config, DTYPE, DEVICE)
    return Decoder(config, weights, max_rows=BUCKETS[-1])


def language_model(name: str) -> LanguageModel:
    made = decoder(name)
    if made.config.tie_word_embeddings:
        return LanguageModel(made, made.weights.tied_head())
    shape = made.weights.embedding.shape
    return LanguageModel(made, LinearWeight(empty(*shape, dtype=DTYPE)))


def reward_model(name: str) -> RewardModel:
    """Of a preset; `preset/family` has the head of that family."""
    preset, _, head_of = name.partition("/")
    made = decoder(preset)
    family = reward_family(head_of) if head_of else find_reward_family(made.config.architecture)
    assert family is not None
    head = family.allocate_head(made.weights.final_norm, made.config.rms_norm_eps)
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


def judge(target: LanguageModel) -> RewardModel:
    norm, eps = target.decoder.weights.final_norm, target.config.rms_norm_eps
    return RewardModel(target.decoder, ClassesHead.allocate(norm, eps, DTYPE, num_classes=10))


def program(prm: str, max_guesses: int = 0) -> list[Call]:
    """All calls of a program over a 1.5B draft, a 7B target and this PRM or scorer."""
    pool, state = PagePool(4096, 1 << 20, DEVICE), slot_state()
    logits = empty(SLOTS + max_guesses, NUM_IDS, dtype=torch.float32)
    target = language_model("qwen2.5-7b")
    models = {
        Role.DRAFT: language_model(SMALL),
        Role.TARGET: target,
        # With a confidence there is one too, which nothing runs.
        Role.PRM: judge(target) if prm in ("judge", "confidence") else reward_model(prm),
    }
    prm_kv = {"judge": Role.TARGET, "confidence": Role.DRAFT}.get(prm, Role.PRM)
    kv = {role: pool.view(model.config.kv_shape(DTYPE)) for role, model in models.items()}
    forwards: dict[Role, Callable[[RowBatch], None]] = {
        role: partial(model.logits, kv=kv[role], page_table=state.page_table[role], out=logits)
        for role, model in models.items()
        if isinstance(model, LanguageModel)
    }
    tokens = (kv[Role.DRAFT].tokens_per_page, kv[Role.TARGET].tokens_per_page)
    tokens_per_page = (*tokens, kv[Role.PRM].tokens_per_page)
    scorer = models[Role.PRM]
    assert isinstance(scorer, RewardModel)
    forwards[Role.PRM] = partial(scorer.read, kv=kv[Role.PRM], page_table=state.page_table[prm_kv])
    if prm == "confidence":
        del forwards[Role.PRM]
    score = partial(
        scorer.score, state=state, tokens_per_page=tokens_per_page,
        scratch=ops.score_scratch(state, scorer.head), prm_kv=prm_kv,
    )  # fmt: skip
    byte, long = torch.uint8, torch.int64
    tables = StepTables(
        empty(1 << 20, dtype=byte), empty(NUM_IDS + 1), empty(NUM_IDS), empty(100), empty(100),
        empty(NUM_IDS), empty(1), empty(0), 0, 0,
    )  # fmt: skip
    merges = MergeTables(
        empty(NUM_IDS, dtype=byte), empty(256), empty(1000, dtype=long), empty(1000), empty(1000)
    )
    loop = Loop(
        state=state,
        batch=RowBatch.allocate(BUCKETS[-1], SLOTS, DEVICE, SLOTS + max_guesses),
        tables=dict.fromkeys((Role.DRAFT, Role.TARGET), tables),
        merges=merges,
        ends=EndRules(tables, merges),
        tokens_per_page=tokens_per_page,
        forwards=forwards,
        score=score,
        logits=dict.fromkeys((Role.DRAFT, Role.TARGET), logits),
        pages=empty(8, 256, dtype=byte),
        confidence=ConfidenceKind.ENTROPY if prm == "confidence" else ConfidenceKind.NONE,
        prm_kv=prm_kv,
    )  # fmt: skip
    assert {model.decoder.ops.backend for model in models.values()} == {"triton"}
    return list(calls(build_program(loop)))


def kernels(work: Work) -> Counter[str]:
    return Counter(launch.kernel.__name__ for launch in work.launches)


@pytest.mark.parametrize(
    ("prm", "max_guesses"),
    [
        ("skywork-prm-1.5b", 0), ("skywork-prm-1.5b", 48), ("qwen2.5-math-prm-7b", 0),
        ("qwen2.5-math-prm-7b/actprm", 0), ("judge", 0), ("confidence", 0),
    ],
)  # fmt: skip
def test_every_op_reaches_the_device_and_allocates_nothing(
    prm: str, max_guesses: int, work: Work
) -> None:
    """A read by the host would raise: these tensors have no values."""
    ops = program(prm, max_guesses)
    for op in ops:
        before = len(work.launches)
        op.fn()
        assert len(work.launches) > before, f"{op.name} launched nothing"
    taken = work.allocations  # scratch, taken once in the warm-up
    for op in ops:
        op.fn()
        assert work.allocations == taken, f"{op.name} allocates"


def test_launches_of_a_decode_pass(work: Work) -> None:
    """What a token of the draft costs in launches: five a layer, and none by cuBLAS."""
    forward = next(op for op in program("skywork-prm-1.5b") if op.name == "DRAFT.forward")
    work.launches.clear()
    forward.fn()
    assert kernels(work) == {
        "_embed_kernel": 1,
        "_qkv_projection_kernel": LAYERS,
        "attend_kernel": LAYERS,
        "_projection_kernel": 3 * LAYERS + 1,
        "_rms_norm_kernel": 1,
    }
    assert not work.products


# Of the loop's own ops, in ticks that read one row. The table of `docs/kernels.md`.
TICKS = {
    "DRAFT": ["schedule_kernel", "adjust_kernel", "draw_kernel"],
    "TARGET": ["schedule_kernel", "adjust_kernel", "draw_kernel"],
    "PRM": ["schedule_kernel", "SCORE"],
}
SCORES = {
    "skywork-prm-1.5b": ["score_value_kernel"],
    "qwen2.5-math-prm-7b": ["_inner_kernel", "score_classes_kernel"],
    "qwen2.5-math-prm-7b/actprm": ["_heads_kernel", "score_ensemble_kernel"],
    "judge": ["score_valued_kernel"],
}


@pytest.mark.parametrize("prm", SCORES)
def test_launches_of_a_tick(prm: str, work: Work) -> None:
    """Besides these the graph of a device loop has one, which arms its conditional nodes."""
    schedule, *ops = program(prm)
    for role, wanted in TICKS.items():
        ran: dict[str, Call] = {}
        for op in ops:  # the first body of a role is that of one row
            if op.name.startswith(f"{role}."):
                ran.setdefault(op.name, op)
        work.launches.clear()
        for op in (schedule, *ran.values()):
            if not op.name.endswith(".forward"):
                op.fn()
        names = (SCORES[prm] if name == "SCORE" else [name] for name in wanted)
        assert [launch.kernel.__name__ for launch in work.launches] == [*chain(*names)]


def test_what_guesses_add(work: Work) -> None:
    """One op before the schedule, one launch that appends, a head on as many rows as places."""
    plain, guessing = (program("skywork-prm-1.5b", guesses) for guesses in (0, 48))
    extra = Counter(op.name for op in guessing) - Counter(op.name for op in plain)
    assert extra == {"guess": 1} and guessing[0].name == "guess"

    def launched(ops: list[Call], name: str) -> Counter[str]:
        work.launches.clear()
        next(op for op in ops if op.name == name).fn()
        return kernels(work)

    assert launched(guessing, "guess") == {"guess_kernel": 1}
    for name in ("schedule", "TARGET.forward"):
        assert launched(guessing, name) == launched(plain, name)
    writes = launched(guessing, "TARGET.write")
    assert writes - launched(plain, "TARGET.write") == {"append_kernel": 1}
    *_, wide = (op for op in guessing if op.name == "TARGET.forward")
    wide.fn()
    assert work.products[-1] == (SLOTS + 48, NUM_IDS)


class RecordedLibrary:
    """Stands in for the CUDA library and keeps what it is given."""

    def __init__(self) -> None:
        self.products: list[Projection] = []

    def decode_projection(self, product: Projection, device: int, stream: int) -> int:
        assert (device, stream) == (0, STREAM)
        self.products.append(product)
        return 0

    def check(self, code: int, function: str) -> None:
        assert (code, function) == (0, "decode_projection")


STREAM = 77


def address(tensor: Tensor) -> int:
    """What `data_ptr` could be: another one for every storage, and aligned."""
    offset = tensor.storage_offset() * tensor.element_size()
    return (tensor.untyped_storage()._cdata << 16) + offset


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, work: Work) -> RecordedLibrary:
    """The CUDA library is there, and chosen."""
    library = RecordedLibrary()
    monkeypatch.setenv("RSD_DECODE_PROJECTION", "cuda")
    monkeypatch.setattr(cuda_library, "load", lambda: library)
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.Tensor, "data_ptr", address)
    return library


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("num_rows", [1, 4])
def test_a_decode_pass_by_the_cuda_library(
    num_rows: int,
    overlap: bool,
    work: Work,
    recorded: RecordedLibrary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In place of every launch of `_projection_kernel`, with its arguments."""
    monkeypatch.setenv("RSD_OVERLAP_KERNELS", str(int(overlap)))
    forwards = [op for op in program("skywork-prm-1.5b") if op.name == "DRAFT.forward"]
    work.launches.clear()
    before = work.allocations
    forwards[BUCKETS.index(num_rows)].fn()
    assert "_projection_kernel" not in kernels(work)
    assert work.allocations == before
    config = PRESETS[SMALL]
    hidden, width = int(config["hidden_size"]), int(config["intermediate_size"])
    *layers, head = recorded.products
    early = decode_projection.OVERLAP_PREVIOUS if overlap else 0
    assert len(layers) == 3 * LAYERS
    for o, gate_up, down in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        assert sizes(o) == (num_rows, hidden, hidden, early)
        assert sizes(gate_up) == (num_rows, width, hidden, early | decode_projection.GATED)
        assert sizes(down) == (num_rows, hidden, width, early)
        # The residual stream is read and written in place.
        assert o.residual == o.y == gate_up.x == down.residual == down.y
        assert gate_up.y == down.x
        assert (o.residual_stride, o.y_stride, down.residual_stride) == (hidden,) * 3
        assert gate_up.eps == pytest.approx(config["rms_norm_eps"])
        assert (o.norm, down.norm, gate_up.residual) == (None,) * 3
    assert sizes(head) == (num_rows, NUM_IDS, hidden, early | decode_projection.FLOAT32_OUT)
    assert (head.norm, head.residual) == (None, None)
    assert all(product.bias is None and product.x_stride for product in recorded.products)
    assert {product.dtype for product in recorded.products} == {0}
    weights = {product.weight for product in recorded.products}
    norms = {product.norm for product in layers[1::3]}
    assert None not in weights | norms
    assert len(weights) == len(recorded.products) and len(norms) == len(layers) // 3


def sizes(product: Projection) -> tuple[int, int, int, int]:
    assert product.weight_stride == product.num_inputs
    return (product.num_rows, product.num_outputs, product.num_inputs, product.flags)


def test_the_cuda_library_leaves_wider_passes_to_triton(
    work: Work, recorded: RecordedLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    forwards = [op for op in program("skywork-prm-1.5b") if op.name == "DRAFT.forward"]
    work.launches.clear()
    forwards[BUCKETS.index(16)].fn()
    assert kernels(work)["_projection_kernel"] == 3 * LAYERS + 1
    assert not recorded.products and not caplog.records


def test_what_the_cuda_library_does_not_take_goes_to_triton(
    work: Work, recorded: RecordedLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    ops = triton_ops()
    bias = empty(8, dtype=DTYPE)
    with caplog.at_level(logging.WARNING, logger="rsd_kernels"):
        for num_inputs in (64, 60, 60):
            x, weight = empty(2, num_inputs, dtype=DTYPE), empty(8, num_inputs, dtype=DTYPE)
            ops.linear(x, LinearWeight(weight, bias), out=empty(2, 8, dtype=DTYPE))
    [taken] = recorded.products
    assert (taken.num_inputs, taken.bias) == (64, address(bias))
    assert [launch.args["NUM_INPUTS"] for launch in work.launches] == [60, 60]
    [record] = caplog.records
    assert "Triton in place of CUDA C++, x has 60 columns" in record.getMessage()


def test_more_rows_than_a_tile_are_products_by_cublas(work: Work) -> None:
    rows = BUCKETS.index(64)
    forward = [op for op in program("skywork-prm-1.5b") if op.name == "TARGET.forward"][rows]
    work.launches.clear()
    forward.fn()
    config = PRESETS["qwen2.5-7b"]
    hidden = int(config["hidden_size"])
    assert Counter(work.products)[(64, hidden)] == 2 * LAYERS  # o and down
    # Norm and product of q, k and v are two launches then; 32 sequences are more than a tile, too.
    assert len(work.products) == 4 * LAYERS + 1
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
