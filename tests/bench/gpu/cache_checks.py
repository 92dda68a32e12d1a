"""Kernels are compiled beforehand for all that an engine launches. Run by `test_cache.py`."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from bench.gpu import cache as gpu_cache
from bench.gpu import engines
from bench.gpu.engines import ENGINES
from bench.gpu.launches import SOURCES
from bench.lib.random_models import TRIPLES
from rsd_engine import Engine
from rsd_kernels.aot.compile import compile_launch, loop_instructions
from rsd_kernels.aot.memoryless import DEVICE
from rsd_kernels.aot.variant import variant_of
from rsd_kernels.embedding.kernel import embed_launch
from rsd_kernels.fork.kernel import fork_launches
from rsd_kernels.launch import Launch
from rsd_kernels.rollback.kernel import truncate_slot_launch
from rsd_kernels.state.slots import SlotSizes, SlotState

OTHER_MEMORY = 80 * 10**9 + 12345  # another device, or one that is shared


@cache
def compiled(source: str) -> set[str]:
    """Keys of what is compiled for it."""
    return {variant_of(launch).key for launch in SOURCES[source]()}


def not_compiled(launches: list[Launch], source: str) -> set[str]:
    return {
        variant.name for variant in map(variant_of, launches)
        if variant.key not in compiled(source)
    }  # fmt: skip


def tiny_engine(**changed: Any) -> Callable[[], Engine]:
    """As `bench.memory` makes it, but for what is changed."""
    arguments: dict[str, Any] = {
        "step_delimiters": None, "max_num_seqs": 8, "max_model_len": 256, "device": DEVICE,
    }  # fmt: skip
    models = TRIPLES["tiny"].checkpoints
    return lambda: Engine(*models(DEVICE, None, 640), **arguments | changed)


def test_every_launch_of_an_engine_is_compiled_beforehand() -> None:
    """Whatever memory is free, and so however many pages there are, and whatever its context is."""
    make = tiny_engine(kv_cache_memory_bytes=12345678, max_model_len=301)
    found = engines.launches(make, free_memory=OTHER_MEMORY)
    names = {launch.kernel.__name__ for launch in found}
    assert {"schedule_kernel", "attend_kernel", "truncate_slot_kernel"} <= names
    assert {launch.overlap for launch in found} == {False, True}
    assert not not_compiled(found, "tiny")


def small_kernel() -> Launch:
    table, out = (torch.empty(320, 32, dtype=torch.float32, device="meta") for _ in range(2))
    token = torch.empty(16, dtype=torch.int32, device="meta")
    return embed_launch(table, token, out=out[:16])


def test_instructions_of_a_loop() -> None:
    with pytest.raises(ValueError, match="_embed_kernel has no loop"):
        loop_instructions(compile_launch(small_kernel(), 90))


def test_what_is_not_compiled_is_found_out() -> None:
    launch = small_kernel()
    assert not not_compiled([launch], "tiny")
    wider = replace(launch, args=launch.args | {"WIDTH": 4096})
    warps = replace(launch, num_warps=2 * launch.num_warps)
    for changed in (wider, warps):
        assert not_compiled([changed], "tiny") == {"_embed_kernel"}


def test_alignment_and_ones_make_another_variant() -> None:
    """As in Triton: by the address of a view, and by the value of an integer."""
    launch = small_kernel()

    def key(**changed: Any) -> str:
        return variant_of(replace(launch, args=launch.args | changed)).key

    table = launch.args["table"]
    assert key(stride_table=4096, table=table.view(-1)[4:]) == key()
    keys = {key(), key(table=table.view(-1)[1:]), key(stride_table=1), key(stride_table=7)}
    assert len(keys) == 4


def test_what_the_host_says_of_a_slot_makes_no_other_variant() -> None:
    sizes = SlotSizes(
        num_slots=18, max_len=64, prm_max_len=64, pages_per_role=16, num_pages=80, log_words=1024
    )
    state = SlotState.allocate(sizes, torch.device("meta"))
    truncations = [
        truncate_slot_launch(state, slot, keep, (16, 16, 16))
        for slot in (0, 1, 16, 17)
        for keep in ((0, 0, 0), (1, 2, 16), (16, 1, 7))
    ]
    assert len({variant_of(launch).key for launch in truncations}) == 1
    pages = torch.empty(80, 512, dtype=torch.uint8, device="meta")
    copies = [fork_launches(state, pages, range(n), (16, 16, 16))[-1] for n in (15, 16, 17)]
    assert len({launch.args["num_copies"] for launch in copies}) == 3
    assert len({variant_of(launch).key for launch in copies}) == 1


def test_products_of_weights_in_few_bits_are_compiled_beforehand() -> None:
    pytest.importorskip("rsd_kernels.grouped.operand")
    found = SOURCES["weight_formats"]()
    few = [launch for launch in found if launch.args.get("FORMAT") is not None]
    assert {launch.args["FORMAT"].kind for launch in few} == {"int4", "int8", "fp8"}
    for kernel in ("_projection_kernel", "_qkv_projection_kernel"):
        starts = {launch.overlap for launch in few if launch.kernel.__name__ == kernel}
        assert starts == {False, True}


def test_an_engine_multiplies_with_few_bits_as_they_are() -> None:
    """The LM head alone is plain; what more than 16 rows take is a kernel of its own."""
    found = engines.launches(ENGINES["executors_few_bits"], free_memory=OTHER_MEMORY)
    kinds: dict[str, set[str | None]] = {}
    for launch in found:
        if "FORMAT" in launch.args:
            form = launch.args["FORMAT"]
            kinds.setdefault(launch.kernel.__name__, set()).add(form and form.kind)
    few = {"int4", "int8", "fp8"}
    assert kinds == {
        "_projection_kernel": few | {None}, "_qkv_projection_kernel": few,
        "_grouped_rows_kernel": few,
    }  # fmt: skip
    assert not not_compiled(found, "executors_few_bits")


@pytest.mark.parametrize("name", ["control", "decode", "ops", "verify"])
def test_what_benchmarks_of_kernels_launch_is_found(name: str) -> None:
    """Without a GPU, in the sizes that they have on one."""
    kernels = {launch.kernel.__name__ for launch in SOURCES[name]()}
    wanted = {
        "control": "rollback_kernel", "decode": "attend_kernel", "ops": "attend_kernel",
        "verify": "attend_kernel",
    }  # fmt: skip
    assert wanted[name] in kernels, kernels


class CompilerOnly:
    """Stands in for Triton's driver: it names the device to compile for, and needs none."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def test_triton_finds_what_was_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch looks where it was put, also after a move of the folder."""
    launch = small_kernel()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TRITON_STORE_BINARY_ONLY", "0")
    monkeypatch.setitem(SOURCES, "tiny", lambda: [launch])
    made = gpu_cache.make(tmp_path / "made", ["tiny"], 90, jobs=1)
    assert made["kernels"] == 1 and not made["failed"]
    [before] = tmp_path.glob("rsd-kernels-*")
    kinds = {path.suffix for path in before.rglob("*") if path.is_file()}
    assert kinds == {".json", ".cubin", ".so"}
    shutil.rmtree(before)
    moved = Path(shutil.move(tmp_path / "made", tmp_path / "moved"))
    assert gpu_cache.check(moved) == {
        "fits": True, "triton_key": made["triton_key"], "expected_key": made["triton_key"],
        "kernels": 1, "missing": [],
    }  # fmt: skip
    driver.set_active(CompilerOnly())
    kernel = launch.kernel.run(
        grid=launch.grid, warmup=True, **meta(launch.all_args), **launch.options
    )
    [variant] = pickle.loads((moved / "variants.pickle").read_bytes())
    assert kernel.hash in variant._cache_hash(90)
    [cache] = tmp_path.glob("rsd-kernels-*")
    assert cache != before
    files = {str(path) for path in cache.glob("*/_embed_kernel.*")}
    assert set(kernel.metadata_group.values()) == files and len(files) == 2
    [module] = cache.rglob("cuda_utils*.so")
    assert b"libcuda.so.1" in module.read_bytes()  # else it could not be loaded
    next(cache.rglob("*.cubin")).unlink()
    found = gpu_cache.check(moved)
    assert not found["fits"] and found["missing"] == [variant.name]


def meta(args: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.empty(1, dtype=value.dtype, device="meta")
        if isinstance(value, torch.Tensor) else value
        for name, value in args.items()
    }  # fmt: skip


def test_without_a_cache_nothing_fits(tmp_path: Path) -> None:
    found = gpu_cache.check(tmp_path)
    assert not found["fits"] and found["kernels"] == 0 and found["expected_key"] is None
    assert not list(tmp_path.iterdir())
