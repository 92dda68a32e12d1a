"""Launches compiled ahead of time. Run by `test_compile.py`."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from rsd_kernels.aot import compile as aot
from rsd_kernels.aot.launches import (
    MODEL_SHAPES,
    DecoderShape,
    ShippedLaunch,
    forward_launches,
    grouped_launches,
    overlapped_launches,
)
from rsd_kernels.launch import Launch
from rsd_kernels.norm.kernel import rms_norm, rms_norm_launch

ARCHS = (80, 90, 100)
# Heads and dtypes that none of the models of the registry has.
OTHERS = {
    "head of 80": (DecoderShape(640, 1024, 2, 8, 2, 80, 1000, False), torch.bfloat16),
    "head of 96, fp16": (DecoderShape(768, 1024, 2, 8, 4, 96, 1000, True), torch.float16),
    "head of 128, normed": (
        DecoderShape(1024, 3072, 2, 16, 8, 128, 1000, False, True),
        torch.bfloat16,
    ),
    "head of 256": (DecoderShape(1024, 1024, 2, 4, 2, 256, 1000, False), torch.bfloat16),
    "GELU, normed before and after": (
        DecoderShape(1152, 6912, 2, 4, 1, 256, 1000, False, True, gelu=True, norms="both"),
        torch.bfloat16,
    ),
    "normed after": (
        DecoderShape(2048, 8192, 2, 16, 16, 128, 1000, False, norms="after"),
        torch.bfloat16,
    ),
    "fp32": (DecoderShape(576, 1536, 2, 9, 3, 64, 1000, False), torch.float32),
}
COMPILED = (
    *("paged_attention", "rope_kv_write", "qkv_projection", "norm_gate_up"),
    "rms_norm + residual",
)
DECODE = ("paged_attention", "qkv_projection", "norm_gate_up", "linear (down)")


def compiled(launch: Launch, arch: int) -> aot.Usage:
    usage = aot.usage(aot.compile_launch(launch, arch))
    assert 16 <= usage.registers <= 255
    return usage


def decode_launch(op: str) -> Launch:
    """An op of Qwen2.5-1.5B for one row."""
    shape = MODEL_SHAPES["Qwen2.5-1.5B"]
    [shipped] = [s for s in forward_launches("Qwen2.5-1.5B", shape, 1) if s.op == op]
    assert shipped.decode
    return shipped.launch


@cache
def decode_kernel(op: str, arch: int, *, overlap: bool, scheduled: bool | None = None) -> Any:
    """The same, compiled; `scheduled` is what it says of itself unless given."""
    launch = decode_launch(op)
    changes = {} if scheduled is None else {"SCHEDULED": scheduled}
    return aot.compile_launch(replace(launch, overlap=overlap, args=launch.args | changes), arch)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("op", DECODE)
def test_decode_kernels_compile_without_spills(op: str, arch: int) -> None:
    usage = aot.usage(decode_kernel(op, arch, overlap=False))
    assert 16 <= usage.registers <= 255 and usage.stack_bytes == 0


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("name", OTHERS)
def test_other_heads_and_dtypes_compile(name: str, rows: int) -> None:
    shape, dtype = OTHERS[name]
    for shipped in forward_launches(name, shape, rows, dtype):
        if shipped.op in COMPILED:
            usage = compiled(shipped.launch, 90)
            assert usage.stack_bytes == 0 or not shipped.decode
            assert usage.shared_bytes <= 160 * 1024  # what an A100 gives one program


@pytest.mark.parametrize(
    ("name", "op", "rows"),
    [
        ("Qwen2.5-0.5B", "norm_gate_up", 1),
        ("Qwen2.5-1.5B", "lm_head", 2),
        ("Qwen2.5-7B", "paged_attention", 256),
    ],
)
def test_fp32_has_tiles_of_its_own(name: str, op: str, rows: int) -> None:
    """With the tiles of 16-bit dtypes it would spill."""
    launches = forward_launches(name, MODEL_SHAPES[name], rows, torch.float32)
    [launch] = [shipped.launch for shipped in launches if shipped.op == op]
    assert compiled(launch, 90).stack_bytes == 0


def test_fp16_norms_before_it_multiplies() -> None:
    """With tensor cores only, and no other dtype: a kernel of its own."""
    shape, dtype = OTHERS["head of 96, fp16"]
    launches = {s.op: s.launch for s in forward_launches("fp16", shape, 16, dtype)}
    launch = launches["norm_gate_up"]
    assert launch.args["NORM_FIRST"] and launch.args["TENSOR_CORES"]
    assert compiled(launch, 90).stack_bytes == 0


def test_weights_are_read_by_wide_asynchronous_copies() -> None:
    shape = MODEL_SHAPES["Qwen2.5-7B"]
    launches = {s.op: s.launch for s in forward_launches("Qwen2.5-7B", shape, 1)}
    for op in ("qkv_projection", "norm_gate_up", "linear (o)", "linear (down)", "lm_head"):
        ptx = aot.compile_launch(launches[op], 90).asm["ptx"]
        assert "cp.async.cg.shared.global" in ptx, op  # the 16-byte form


@pytest.mark.parametrize("arch", ARCHS)
def test_parts_of_attention_are_released_before_they_are_read(arch: str) -> None:
    """Stores of all threads, a barrier, the count; past it no load from what may be stale."""
    ptx = str(decode_kernel("paged_attention", arch, overlap=False).asm["ptx"])
    before, after = ptx.split("atom.global.gpu.acq_rel.add")  # one there is
    stores, barrier = before.rindex("st.global"), before.rindex("bar.sync")
    assert stores < barrier and "bra" not in before[barrier:]
    assert after.index("bar.sync") < after.index("ld.global")  # the count is known to all
    loads = re.findall(r"ld\.global\S*", after)
    assert len(loads) > 8 and all(load.startswith("ld.global.cg") for load in loads)


TOUCHES = re.compile(r"\b(ld|st|atom|red|cp\.async\S*)\.(shared|global)|\bret;")
# They read row batches and page tables, which the schedule of a pass has written long before.
SCHEDULED = ("qkv_projection", "paged_attention", "rope_kv_write")
EARLY = (
    *SCHEDULED,
    *("norm_linear (qkv)", "norm_gate_up", "linear (o)", "linear (down)"),
    *("rows_norm", "lm_head"),
)


def decode_ptx(op: str, arch: int, *, overlap: bool, scheduled: bool | None = None) -> str:
    """The body of such a kernel, which does not spill."""
    kernel = decode_kernel(op, arch, overlap=overlap, scheduled=scheduled)
    assert kernel.metadata.launch_pdl is overlap
    assert aot.usage(kernel).stack_bytes == 0
    ptx = str(kernel.asm["ptx"])
    return ptx[ptx.index("\n{", ptx.index(".entry")) : ptx.index("\n}")]


def before_the_wait(ptx: str, *, late: bool = False) -> tuple[set[str], int]:
    """What touches memory before the kernel waits, and how many prefetches there are.

    late: it lets the next kernel start at its last tile.
    """
    assert ptx.count("griddepcontrol.wait") == 1
    starts = [found.start() for found in re.finditer("griddepcontrol.launch_dependents", ptx)]
    wait = ptx.index("griddepcontrol.wait")
    prefetches = [found.start() for found in re.finditer(r"prefetch\.global\.L2", ptx)]
    touches = list(TOUCHES.finditer(ptx))
    if late:  # before the last tile, which may be the first
        assert len(starts) == 2 and wait < starts[0]
    else:
        [start] = starts
        assert start < wait and start < min(*prefetches, touches[0].start(), len(ptx))
    assert wait < touches[-1].start()
    before = [at for at in prefetches if at < wait]
    return {found.group() for found in touches if found.start() < wait}, len(before)


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("op", EARLY)
def test_what_early_kernels_do_before_they_have_waited(op: str, arch: int) -> None:
    late = bool(decode_launch(op).args.get("PERSISTENT"))
    assert late == (op in ("norm_gate_up", "lm_head"))
    touched, prefetches = before_the_wait(decode_ptx(op, arch, overlap=True), late=late)
    assert touched == ({"ld.global"} if op in SCHEDULED else set())
    fetches = any(word in op for word in ("linear", "gate_up", "lm_head")) or op in SCHEDULED[:2]
    assert bool(prefetches) == fetches


@pytest.mark.parametrize(("op", "form", "arch"), [("linear (o)", "fp8", 90)])
def test_few_bits(op: str, form: str, arch: int) -> None:
    """They are read by wide copies, and the early variant asks for them before it waits.

    `python -m bench.kernel_resources` compiles all of them.
    """
    launches = {s.op: s.launch for s in grouped_launches("Qwen2.5-7B", 1, form)}
    kernel = aot.compile_launch(launches[f"{op}, {form}, early"], arch)
    assert aot.usage(kernel).stack_bytes == 0
    ptx = str(kernel.asm["ptx"])
    assert "cp.async.cg.shared.global" in ptx and "mma.sync" in ptx
    touched, prefetches = before_the_wait(ptx[ptx.index("\n{", ptx.index(".entry")) :])
    assert not touched and prefetches


@pytest.mark.parametrize("op", SCHEDULED)
def test_without_a_schedule_they_touch_nothing_before(op: str) -> None:
    ptx = decode_ptx(op, 90, overlap=True, scheduled=False)
    touched, prefetches = before_the_wait(ptx)
    assert touched == set() and bool(prefetches) == (op == "qkv_projection")


@pytest.mark.parametrize("op", EARLY)
def test_plain_kernels_wait_for_nothing(op: str) -> None:
    ptx = decode_ptx(op, 90, overlap=False)
    assert "griddepcontrol" not in ptx and TOUCHES.search(ptx) is not None
    if "ahead" in decode_launch(op).args:  # of the next weight, after all work
        asked = [found.start() for found in re.finditer(r"prefetch\.global\.L2", ptx)]
        assert len(asked) == 1
        # Attention has programs that do nothing else: theirs may stand before what others do.
        assert asked[0] > ptx.rindex("st.global") or op == "paged_attention"
    else:
        assert "prefetch" not in ptx


def test_which_launches_may_start_early() -> None:
    shape = MODEL_SHAPES["Qwen2.5-1.5B"]
    plain = [shipped.op for shipped in forward_launches("Qwen2.5-1.5B", shape, 16)]
    early = list(overlapped_launches("Qwen2.5-1.5B", shape, 16))
    assert {shipped.op for shipped in early} == {f"{op}, early" for op in EARLY}
    assert set(plain) - set(EARLY) == {"embed"}
    assert all(shipped.overlap and shipped.decode for shipped in early)
    assert not list(overlapped_launches("Qwen2.5-1.5B", shape, 17))
    [embed, *_] = forward_launches("Qwen2.5-1.5B", shape, 1)
    with pytest.raises(ValueError, match="_embed_kernel has no argument OVERLAP"):
        replace(embed.launch, overlap=True)


@pytest.mark.parametrize(
    ("op", "rows", "num_bytes"),
    [("linear (o)", 1, 4 * 24 * 128), ("norm_gate_up", 1, 16384), ("lm_head", 16, 16384)],
)
def test_how_much_weight_a_program_asks_for(op: str, rows: int, num_bytes: int) -> None:
    """The o projection of this shape has rows of 3 KiB: all of them."""
    shape = MODEL_SHAPES["Qwen2.5-1.5B"]
    launches = {s.op: s.launch for s in forward_launches("Qwen2.5-1.5B", shape, rows)}
    args = launches[op].args
    rows_of_weight = args["BLOCK_N"] * (2 if args["GATED"] else 1)
    most = min(args["PREFETCH"] * 128, 2 * args["NUM_INPUTS"])
    assert rows_of_weight * most == num_bytes


def test_more_rows_than_a_tile_are_not_decode() -> None:
    launch = next(iter(forward_launches("Qwen2.5-1.5B", MODEL_SHAPES["Qwen2.5-1.5B"], 1))).launch
    assert ShippedLaunch("op", "shape", 16, launch).decode
    assert not ShippedLaunch("op", "shape", 17, launch).decode


@pytest.mark.parametrize("width", [1, 24, 255, 256, 257, 896, 3584, 16384])
def test_no_two_warps_hold_an_element_of_a_norm(width: int) -> None:
    """In place, a warp that loads late would read what another has already stored."""
    x = torch.empty(3, width, device="meta")
    launch = rms_norm_launch(x, x[0], 1e-6, out=x)
    assert launch.num_warps == 1 or 32 * launch.num_warps <= launch.args["BLOCK"]


def test_tensors_on_a_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match="x is on cpu; Triton kernels take CUDA tensors, and CPU"):
        rms_norm(torch.zeros(2, 4), torch.zeros(4), 1e-5)
