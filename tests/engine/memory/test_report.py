"""The memory report counts what was allocated, and the estimate foresees it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields

import pytest
import torch

from rsd_engine import Engine, SamplingParams
from rsd_engine.engine import build, models
from rsd_engine.engine.memory_estimate import MemoryEstimate, ModelMemory, estimate_models
from rsd_engine.engine.weight_use import count_bytes, read_by_format
from rsd_engine.models.weight_form import WeightForm, name_of
from rsd_engine.roofline.sources import find_config
from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.state.enums import Role
from tests.tiny_models import TinyModels

MODEL_LEN, SLOTS, POOL = 256, 3, 2_000_000


@pytest.fixture(scope="module")
def engine(tiny: TinyModels) -> Iterator[Engine]:
    with Engine(
        **tiny.sources(), device="cpu", max_num_seqs=SLOTS, max_model_len=MODEL_LEN,
        kv_cache_memory_bytes=POOL,
    ) as made:  # fmt: skip
        yield made


def test_weights_and_pages_by_hand(engine: Engine) -> None:
    report = engine.memory
    # hidden 32, 2 layers, 4 heads of 8, 2 of them for KV, inter 64: 32*(32+2*16+32+3*64) + 2*32
    layer = 32 * (32 + 2 * 16 + 32 + 3 * 64) + 64
    vocab = engine.parts.models.writers[Role.DRAFT].model.config.vocab_size
    assert report.weights[Role.DRAFT] == 4 * (2 * layer + 2 * vocab * 32 + 32)
    draft, target = report.pages[Role.DRAFT], report.pages[Role.TARGET]
    assert draft.bytes_per_token == 2 * 2 * 2 * 8 * 4
    assert target.bytes_per_token == 2 * 2 * 2 * 12 * 4
    assert report.page_bytes == 16 * target.bytes_per_token == 6144
    assert (target.tokens_per_page, target.remainder) == (16, 0)
    assert (draft.tokens_per_page, draft.remainder) == (24, 0)
    assert report.pool == min(POOL // 6144, SLOTS * pages_of_a_sequence()) * 6144


def pages_of_a_sequence() -> int:
    """Draft 24, target 16 and PRM 24 tokens a page; the PRM's row is 2 * 256 + 128 long."""
    return 11 + 16 + 27


def test_the_plan_foresees_the_report(engine: Engine, tiny: TinyModels) -> None:
    report = engine.memory
    sources = {Role[name.upper()]: str(p) for name, p in tiny.sources().items()}
    estimate = on_a_gpu(sources, 500_000_000, slots=SLOTS, model_len=MODEL_LEN)
    assert estimate.layout.page_bytes == report.page_bytes
    assert estimate.layout.pages_per_sequence == pages_of_a_sequence()
    for role, weights in report.weights.items():
        head = 4 * 33 if role == Role.PRM else 0  # the value head: 32 weights and a bias
        assert estimate.weights[role] + head == weights
        assert estimate.kv_bytes_per_token[role] == report.pages[role].bytes_per_token
    assert estimate.state == report.state + report.log
    # The estimate cannot see which of the vocabulary's rows are padding. It is for a GPU.
    sampling = sampling_bytes(scratch_of(engine))
    assert estimate.activations == pytest.approx(report.activations + sampling, rel=0.01)
    rope = 2 * 4 * (256 * 8 + 256 * 12 + (2 * 256 + 128) * 8)  # contexts and head sizes
    assert estimate.tables == rope < report.tables
    assert estimate.available == 500_000_000


def on_a_gpu(
    sources: Mapping[Role, str], available: int, *, slots: int, model_len: int
) -> MemoryEstimate:
    """Each model in the dtype of its checkpoint, with weights of its own."""
    configs = {role: find_config(source) for role, source in sources.items()}
    models = {role: ModelMemory(c, WeightForm.plain(c.dtype)) for role, c in configs.items()}
    return estimate_models(
        models, available, max_num_seqs=slots, max_model_len=model_len, on_gpu=True
    )


def test_weights_by_format(tiny: TinyModels) -> None:
    """A draft in blocks of 34 bytes for 32 weights, and the target's models in fp32."""
    by_role = {"draft": "int8"}
    with Engine(**tiny.sources(), device="cpu", quantization=by_role, max_num_seqs=1) as quantised:
        report = quantised.memory
        config = quantised.parts.models.writers[Role.DRAFT].model.config
        reads = read_by_format(quantised.parts.models.models[Role.DRAFT])
    layers, norms = 2 * 32 * (32 + 2 * 16 + 32 + 3 * 64), 4 * (2 * 64 + 32)
    embedding = config.vocab_size * 32
    assert report.formats[Role.DRAFT] == {"Q8_0": (layers + 2 * embedding) // 32 * 34,
                                          "float32": norms}  # fmt: skip
    assert report.weights[Role.DRAFT] == sum(report.formats[Role.DRAFT].values())
    assert set(report.formats[Role.TARGET]) == {"float32"}
    assert reads == {"Q8_0": (layers + embedding) // 32 * 34, "float32": norms}
    assert "0.0 MB: 0.0 MB Q8_0, 0.0 MB float32" in report.text()
    assert report.to_dict()["formats"]["draft"] == report.formats[Role.DRAFT]


def test_matrices_in_few_bits_have_the_name_of_their_values() -> None:
    values = torch.zeros(4, 256, dtype=torch.uint8)
    matrix = GroupedMatrix.pack(ValueKind.INT4, values, torch.ones(4, 2), group_size=128)
    assert name_of(matrix) == "int4"
    assert count_bytes([matrix], set()) == matrix.nbytes


def scratch_of(engine: Engine) -> SampleScratch:
    """What the sampling kernels would get for this engine."""
    loop = engine.parts.core.loop
    return SampleScratch.allocate(loop.state, loop.logits[Role.DRAFT].shape[1], SLOTS)


def sampling_bytes(scratch: SampleScratch) -> int:
    return sum(getattr(scratch, field.name).nbytes for field in fields(scratch))


def test_the_scratch_of_sampling_is_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = engine.memory
    scratch, loop = scratch_of(engine), engine.parts.core.loop
    monkeypatch.setitem(vars(loop), "sample_scratch", {scratch.raw.shape[1]: scratch})
    assert engine.memory.activations - without.activations == sampling_bytes(scratch)
    assert engine.memory.total - without.total == sampling_bytes(scratch)


def test_guesses_need_logits_and_room_to_sample() -> None:
    """16 slots and 32 guesses: as much as 48 slots, but for contexts and pages."""
    memory = {
        Role.TARGET: ModelMemory(
            find_config("qwen2.5-0.5b"), WeightForm.plain(torch.float32, torch.float32)
        )
    }

    def activations(slots: int, guesses: int, *, on_gpu: bool) -> int:
        return estimate_models(
            memory, 10**10, max_num_seqs=slots, max_model_len=500, max_guesses=guesses,
            on_gpu=on_gpu,
        ).activations  # fmt: skip

    for on_gpu in (False, True):
        assert activations(16, 32, on_gpu=on_gpu) == activations(48, 0, on_gpu=on_gpu)
    logits = activations(48, 0, on_gpu=False) - activations(16, 0, on_gpu=False)
    assert logits == 32 * (151936 + 1) * 4
    more = activations(16, 32, on_gpu=True) - activations(16, 0, on_gpu=True)
    assert more - logits > 32 * 151936 * 4  # a copy of the logits, and what is small beside it


def test_nothing_is_counted_twice(engine: Engine) -> None:
    report = engine.memory
    parts = [report.pool, report.activations, report.state, report.log, report.tables]
    assert all(part > 0 for part in parts)
    assert report.total == sum(parts) + sum(report.weights.values())
    assert report.to_dict()["total"] == report.total
    assert report.to_dict()["weights"]["prm"] == report.weights[Role.PRM]


def test_page_waste_of_a_running_request(engine: Engine) -> None:
    assert engine.memory.page_waste is None
    params = SamplingParams(temperature=0.0, max_tokens=200, seed=1, ignore_eos=True)
    stream = engine.stream("What is 12 + 30?", params)
    events = iter(stream)
    next(events)
    report = engine.memory
    held = sum(use.pages_held for use in report.pages.values())
    used = sum(use.tokens_held * use.bytes_per_token for use in report.pages.values())
    assert held > 0
    assert report.page_waste == pytest.approx(1 - used / (held * report.page_bytes))
    assert report.page_waste is not None and 0 < report.page_waste < 1
    assert "% empty" in report.text()
    stream.close()
    assert engine.memory.page_waste is None
    assert "% empty" not in engine.memory.text()


def test_the_log_tells_the_sizes(tiny: TinyModels, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rsd_engine"), Engine(
        target=tiny.target, device="cpu", max_num_seqs=1, max_model_len=64
    ) as engine:  # fmt: skip
        report = engine.memory
    assert f"{sum(report.weights.values()) / 1e6:.1f} MB of weights" in caplog.text
    [pages] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("KV:")]
    count, each = re.match(r"KV: (\d+) pages of (\d+) bytes", pages).groups()  # type: ignore[union-attr]
    assert int(count) * int(each) == report.pool
    assert pages.endswith("; 1 requests of max_model_len=64 tokens fit at once")


@pytest.mark.parametrize(
    ("module", "name", "error", "knobs"),
    [
        (build, "PagePool", torch.OutOfMemoryError("CUDA out of memory"),
         ["KV pages", "kv_cache_memory_bytes", "gpu_memory_utilization", "max_num_seqs"]),
        (models, "load_language_model", torch.OutOfMemoryError("CUDA out of memory"),
         ["draft: weights of ", "dtype", "device", "MB of memory are needed", "available on cpu"]),
        (models, "load_reward_model", RuntimeError("DefaultCPUAllocator: can't allocate memory"),
         ["prm: weights of ", "dtype", "device"]),
    ],
)  # fmt: skip
def test_out_of_memory_names_the_knob(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch, module: object, name: str,
    error: RuntimeError, knobs: list[str],
) -> None:  # fmt: skip
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, name, full)
    with pytest.raises(MemoryError) as raised:
        Engine(**tiny.sources(), device="cpu")
    assert all(knob in str(raised.value) for knob in knobs)
    assert raised.value.__cause__ is error


def test_other_errors_of_loading_stay_what_they_are(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(models, "load_language_model", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        Engine(target=tiny.target, device="cpu")


def test_how_many_sequences_fit() -> None:
    """Qwen2.5 1.5B and 7B with a 1.5B PRM: pages of 16 target tokens hold 32 of the others."""
    names = {Role.DRAFT: "qwen2.5-1.5b", Role.TARGET: "qwen2.5-7b", Role.PRM: "skywork-prm-1.5b"}
    estimate = on_a_gpu(names, 72_000_000_000, slots=16, model_len=4096)
    assert estimate.layout.page_bytes == 16 * 57344
    assert estimate.layout.tokens_per_page == (32, 16, 32)
    others = estimate.activations + estimate.state + estimate.tables
    assert estimate.pool == 72_000_000_000 - sum(estimate.weights.values()) - others
    assert estimate.tables == 2 * (4096 + 4096 + 2 * 4096 + 128) * 128 * 4
    # 1024 tokens: 32 draft pages, 64 target pages, 1024 + 25 PRM tokens in 33 pages
    assert estimate.sequences(1024, step_tokens=40) == estimate.pool // (16 * 57344) // (
        32 + 64 + 33
    )
    used = 1024 * 28672 + 1024 * 57344 + 1049 * 28672
    assert estimate.page_waste(1024, 40) == pytest.approx(1 - used / (129 * 16 * 57344))
    large = on_a_gpu({Role.TARGET: "qwen2.5-72b"}, 72_000_000_000, slots=1, model_len=1024)
    assert large.sequences(1024, 40) == 0
