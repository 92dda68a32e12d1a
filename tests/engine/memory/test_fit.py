"""The context and the pages that fit, decided before weights are read."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.engine import memory_fit, models
from rsd_engine.engine.memory_estimate import ModelMemory, estimate_models
from rsd_engine.engine.memory_fit import MemoryFit, MemoryOptions, fit_memory
from rsd_engine.engine.model_sources import OpenOptions
from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_engine.models.weight_form import WeightForm
from rsd_engine.roofline.sources import find_config
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import PROMPTS, decisions, generate
from tests.plain_weights import matrix_of, plain
from tests.tiny_models import CONTEXT, TinyModels

CPU = torch.device("cpu")
QWEN = {Role.DRAFT: "qwen2.5-1.5b", Role.TARGET: "qwen2.5-7b", Role.PRM: "skywork-prm-1.5b"}
Available = Callable[[int], None]


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Available:
    """Sets what memory the engine finds."""

    def set_bytes(num_bytes: int) -> None:
        monkeypatch.setattr(memory_fit, "available_bytes", lambda *_: num_bytes)

    return set_bytes


def of(names: dict[Role, str]) -> dict[Role, ModelMemory]:
    """bf16 checkpoints on a CPU: matrices as stored, computed in fp32."""
    return {
        role: ModelMemory(find_config(name), WeightForm.plain(torch.float32, torch.bfloat16))
        for role, name in names.items()
    }


def fit(
    memory: dict[Role, ModelMemory],
    device: torch.device = CPU,
    *,
    model_len: int | None = None,
    pages: int | None = None,
) -> MemoryFit:
    return fit_memory(memory, MemoryOptions(16, model_len, pages, 0.9), device)


# ------------------------------------------------------------------ without max_model_len


def test_a_small_model_gets_all_of_its_context_on_24_gb(available: Available) -> None:
    available(21_000_000_000)
    found = fit(of({Role.TARGET: "qwen2.5-0.5b"}))
    assert found.model_len == 32768 == found.max_len[Role.TARGET]
    # a token: 24 layers, K and V, 2 heads of 64, fp32
    assert found.layout.page_bytes == 16 * 24 * 2 * 2 * 64 * 4
    weights = 494_032_768 * 2
    assert found.estimate.weights == {Role.TARGET: weights}
    room = (21_000_000_000 - weights - found.estimate.activations) // 4
    left = room - found.estimate.state - found.estimate.tables
    assert found.layout.num_pages == left // found.layout.page_bytes


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
def test_a_context_is_as_long_as_fits(available: Available, device: torch.device) -> None:
    available(24_000_000_000)
    memory = of(QWEN)
    found = fit(memory, device)
    assert 256 < found.model_len < 32768
    assert found.max_len[Role.PRM] == min(32768, 2 * found.model_len + 128)

    def left_over(length: int) -> int:
        """Bytes that one request of this length leaves of the room for contexts."""
        at = estimate_models(
            memory, 24_000_000_000, max_num_seqs=16, max_model_len=length,
            on_gpu=device.type == "cuda",
        )  # fmt: skip
        room = at.available - sum(at.weights.values()) - at.activations
        room = room if device.type == "cuda" else room // 4
        return room - at.state - at.tables - at.layout.pages_per_sequence * at.layout.page_bytes

    assert left_over(found.model_len) >= 0 > left_over(found.model_len + 1)
    pages = found.layout.num_pages
    assert found.layout.pages_per_sequence <= pages < found.layout.pages_per_sequence * 16


def test_named_pages_decide_the_context(available: Available) -> None:
    available(24_000_000_000)
    memory = of({Role.TARGET: "qwen2.5-0.5b"})
    page = 16 * 24 * 2 * 2 * 64 * 4
    found = fit(memory, pages=100 * page + 5)
    assert (found.model_len, found.layout.num_pages) == (1600, 100)


def test_one_number_of_a_config_cannot_take_all_memory(available: Available) -> None:
    """What slots hold for each token of a context counts, which for small models is most."""
    available(20_000_000_000)
    config = replace(find_config("qwen2.5-0.5b"), max_position_embeddings=2_000_000_000)
    memory = {Role.TARGET: ModelMemory(config, WeightForm.plain(torch.float32, torch.bfloat16))}
    for pages in (None, 10_000_000_000):
        found = fit(memory, pages=pages)
        assert found.model_len < 1_000_000
        assert found.estimate.state + found.estimate.tables < 5_000_000_000


def test_the_log_says_what_decided(
    available: Available, tiny: TinyModels, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="rsd_engine"):
        available(10**9)
        Engine(target=tiny.target, device="cpu", max_num_seqs=1).close()
        assert f"max_model_len: {CONTEXT} tokens, all that draft and target allow" in caplog.text
        available(2_700_000)
        engine = Engine(target=tiny.target, device="cpu", max_num_seqs=1)
    length = engine.parts.rules.max_model_len
    engine.close()
    assert 256 <= length < CONTEXT
    [line] = [r.getMessage() for r in caplog.records if f"of the {CONTEXT}" in r.getMessage()]
    assert line.startswith(f"max_model_len: {length} tokens of the {CONTEXT} that draft and target")
    assert "2.7 MB available on cpu" in line and "set kv_cache_memory_bytes" in line


# ------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("gigabytes", "options", "error", "words"),
    [
        (16, {}, MemoryError,
         ["the models need 21.", "target 15.2 GB", "prm 3.09 GB", "16.0 GB of memory are available",
          "smaller models", "max_num_seqs"]),
        (21.8, {}, MemoryError,
         ["max_model_len=256", "21.8 GB available on cpu", "kv_cache_memory_bytes", "tokens fit"]),
        (24, {"model_len": 32768}, ValueError,
         ["max_model_len=32768", "24.0 GB available on cpu", "lower max_model_len", "tokens fit"]),
        (24, {"pages": 5 * 10**7}, ValueError,
         ["kv_cache_memory_bytes=50000000 cannot hold one request of max_model_len=256 tokens"]),
        (24, {"pages": 10**10}, MemoryError,
         ["kv_cache_memory_bytes=10000000000", "24.0 GB of memory are available", "lower"]),
        (24, {"model_len": 32769}, ValueError, ["max_model_len must be in [2, 32768]", "32769"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    available: Available, gigabytes: float, options: dict[str, int], error: type[Exception],
    words: list[str],
) -> None:  # fmt: skip
    available(int(gigabytes * 10**9))
    with pytest.raises(error) as raised:
        fit(of(QWEN), **options)  # type: ignore[arg-type]
    text = str(raised.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_the_longest_that_fits_is_named(available: Available) -> None:
    available(24_000_000_000)
    memory = of(QWEN)
    longest = fit(memory).model_len
    with pytest.raises(ValueError, match=rf"\({longest} tokens fit\)"):
        fit(memory, model_len=longest + 1)
    assert fit(memory, model_len=longest).layout.num_pages >= 1


def test_it_is_told_before_weights_are_read(
    available: Available, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(models, "load_language_model", read)
    available(200_000)
    with pytest.raises(MemoryError, match="the models need .* 0.2 MB of memory are available"):
        Engine(**tiny.sources(), device="cpu")


# ------------------------------------------------------------------ a shorter context in use


def test_tables_are_as_long_as_the_context(tiny: TinyModels, tmp_path: Path) -> None:
    """A config that allows 16 million positions costs no more than the context that is used."""
    folder = tmp_path / "long"
    shutil.copytree(tiny.target, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 16_000_000
    (folder / "config.json").write_text(json.dumps(config))
    with Engine(target=folder, device="cpu", max_num_seqs=2, max_model_len=300) as engine:
        memory = engine.memory
        writer = engine.parts.models.main.model
        assert writer.decoder.max_positions == 300
        assert memory.tables < 2_000_000
        long = generate(engine, ["ab"], SamplingParams(temperature=0.0, max_tokens=20))
    with Engine(target=tiny.target, device="cpu", max_num_seqs=2) as engine:
        wanted = generate(engine, ["ab"], SamplingParams(temperature=0.0, max_tokens=20))
    assert decisions(long[0]) == decisions(wanted[0])


def test_a_fitted_context_is_used_to_its_end(available: Available, tiny: TinyModels) -> None:
    available(2_700_000)
    with Engine(target=tiny.target, device="cpu", max_num_seqs=1) as engine:
        length = engine.parts.rules.max_model_len
        params = SamplingParams(temperature=0.0, max_tokens=length - 4, ignore_eos=True)
        prompt = {"prompt_token_ids": [0, 70, 71, 72]}
        [result] = engine.generate([prompt], params, use_tqdm=False)
        assert len(result.outputs[0].token_ids) == length - 4
        with pytest.raises(ValueError, match=f"max_model_len={length}"):
            engine.generate([{"prompt_token_ids": [70] * length}], params, use_tqdm=False)


def test_no_model_reads_past_its_tables(tiny: TinyModels) -> None:
    """Where a token is cut at a delimiter, at the end of the context too."""
    options = {"device": "cpu", "max_num_seqs": 16, "max_model_len": 40}
    with Engine(**tiny.sources(), **options, policy=Threshold(0.5)) as engine:  # type: ignore[arg-type]
        for role, model in engine.parts.models.models.items():
            assert model.decoder.max_positions == (208 if role == Role.PRM else 40)
        params = [SamplingParams(temperature=1.0, seed=s, ignore_eos=True) for s in range(32)]
        results = generate(engine, ["c" * (1 + s % 16) for s in range(32)], params)
    lengths = {len(r.prompt_token_ids) + len(r.outputs[0].token_ids) for r in results}
    assert max(lengths) == 40


# ------------------------------------------------------------------ one model in two roles


@pytest.fixture(scope="module")
def twice(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """The target's folder as draft too, under another name."""
    link = tmp_path_factory.mktemp("twice") / "link"
    link.symlink_to(tiny.target, target_is_directory=True)
    return TinyModels(link, tiny.target, tiny.prm)


def test_two_roles_of_one_folder_share_weights(twice: TinyModels, tmp_path: Path) -> None:
    params = [SamplingParams(seed=s, max_tokens=60) for s in range(2)]
    options = {"device": "cpu", "max_num_seqs": 2, "policy": Threshold(0.5), "dtype": "float32"}
    copy = tmp_path / "copy"
    shutil.copytree(twice.target, copy)
    with (
        Engine(**twice.sources(), **options) as shared,  # type: ignore[arg-type]
        Engine(copy, twice.target, twice.prm, **options) as apart,  # type: ignore[arg-type]
    ):
        draft, target = (shared.parts.models.writers[r].model for r in (Role.DRAFT, Role.TARGET))
        for name in ("embedding", "final_norm"):
            one, other = (getattr(m.decoder.weights, name) for m in (draft, target))
            assert one.data_ptr() == other.data_ptr()
        assert matrix_of(draft.lm_head).data_ptr() == matrix_of(target.lm_head).data_ptr()
        other_draft = apart.parts.models.writers[Role.DRAFT].model
        other_target = apart.parts.models.writers[Role.TARGET].model
        one, other = (plain(m.decoder.weights.embedding) for m in (other_draft, other_target))
        assert one.data_ptr() != other.data_ptr()
        once, both = shared.memory, apart.memory
        assert once.weights[Role.TARGET] == 0 < both.weights[Role.TARGET]
        assert once.weights[Role.DRAFT] == both.weights[Role.DRAFT]
        found, wanted = (generate(e, list(PROMPTS[:2]), params) for e in (shared, apart))
    assert [decisions(r) for r in found] == [decisions(r) for r in wanted]
    assert sum(r.metrics.draft.tokens_read for r in found) > 0
    assert sum(r.metrics.target.tokens_read for r in found) > 0


def test_the_estimate_counts_shared_weights_once(twice: TinyModels) -> None:
    opened = models.open_models(
        twice.draft, str(twice.target), twice.prm,
        options=OpenOptions(), prm_options=PrmOptions(), device=torch.device("cpu"),
    )  # fmt: skip
    memory = models.memory_of(opened, "float32", CPU)
    assert opened[Role.DRAFT] is opened[Role.TARGET] is not opened[Role.PRM]
    assert memory[Role.DRAFT] is memory[Role.TARGET]
    sizes: Any = {"max_num_seqs": 2, "max_model_len": 128}
    once = estimate_models(memory, 10**9, **sizes)
    both = estimate_models(memory | {Role.DRAFT: replace(memory[Role.DRAFT])}, 10**9, **sizes)
    assert once.weights[Role.TARGET] == 0
    assert once.weights[Role.DRAFT] == both.weights[Role.TARGET] == both.weights[Role.DRAFT]
    assert once.layout == both.layout and once.state == both.state
    with Engine(
        **twice.sources(), device="cpu", dtype="float32", max_num_seqs=2, max_model_len=128
    ) as engine:
        report = engine.memory
    assert once.activations == pytest.approx(report.activations, rel=0.01)
    assert once.weights[Role.DRAFT] == report.weights[Role.DRAFT]


# ------------------------------------------------------------------ the start


def test_the_stages_of_a_start(tiny: TinyModels, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="rsd_engine"),
        Engine(target=tiny.target, device="cpu", max_num_seqs=1) as engine,
    ):
        stages = engine.parts.start_seconds
    assert list(stages) == [
        "read configs and tokenizers", "read weights", "build", "warm up and capture",
    ]  # fmt: skip
    assert all(seconds > 0 for seconds in stages.values())
    [line] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("start: ")]
    assert all(f"{stage} {seconds:.2f} s" in line for stage, seconds in stages.items())
