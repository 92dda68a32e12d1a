"""Kernels of the loop compile for GPUs that are not here. Run by `test_compile.py`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from rsd_kernels.aot import compile as aot
from rsd_kernels.aot.loop_launches import loop_launches

# One shape of every kernel; `python -m bench.kernel_resources` has them all.
ALL = loop_launches()
SCHEDULES = {name: launch for name, launch in ALL.items() if name.startswith("schedule_")}
LAUNCHES = SCHEDULES | {
    launch.kernel.__name__: launch for name, launch in ALL.items() if name not in SCHEDULES
}


@cache
def compiled(name: str, capability: int) -> Any:
    return aot.compile_launch(LAUNCHES[name], capability)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", LAUNCHES)
def test_compiles(name: str, capability: int) -> None:
    usage = aot.usage(compiled(name, capability))
    assert usage.stack_bytes == 0, f"{name} spills: {usage}"


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_the_host_asks_is_the_same_for_every_thread_of_the_schedule(name: str) -> None:
    """It is loaded by all of them, and the host writes at any time: only one load may be used."""
    ptx = str(compiled(name, 90).asm["ptx"])
    [loaded] = re.findall(r"ld\.volatile\.global\.b32 \{ (%r\d+) \}", ptx)
    _, _, after = ptx.partition(f"{{ {loaded} }}")
    used = re.findall(rf"^.*{loaded}\b.*$", after, re.MULTILINE)
    assert len(used) == 1 and re.search(rf"@%p\d+ st\.global\.b32 .* \{{ {loaded} \}}", used[0])
    stored = after.index(used[0])
    assert stored < after.index("bar.sync", stored) < after.index("bra", stored)


@pytest.mark.parametrize("name", ["_inner_kernel", "_heads_kernel"])
def test_relu_keeps_nan(name: str) -> None:
    """max.f32 would drop it, and leave a reward that looks like any other."""
    ptx = str(compiled(name, 90).asm["ptx"])
    assert "setp.lt.f32" in ptx and "max" not in ptx


@pytest.mark.parametrize(
    "name",
    [
        "end_slot_step_kernel",
        "draw_kernel",
        "append_kernel",
        "score_value_kernel",
        "score_classes_kernel",
        "score_ensemble_kernel",
    ],
)
def test_the_log_is_written_before_its_end(name: str) -> None:
    """The host may read both while the kernel runs: a barrier, a fence of the system, the end."""
    ptx = str(compiled(name, 90).asm["ptx"])
    before, fence, after = ptx.partition("fence.acq_rel.sys")
    assert fence and fence not in after
    assert 0 <= before.rindex("st.global") < before.rindex("bar.sync")
    assert re.search(
        r"mov\.b32 (%r\d+), .*?@%p\d+ st\.global\.b32 \[.*?\], \{ \1 \}", after, re.DOTALL
    )
