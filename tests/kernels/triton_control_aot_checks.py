"""Control kernels compile for GPUs that are not here. Run by `test_triton_control.py`."""

from __future__ import annotations

import pytest

from rsd_kernels import aot
from rsd_kernels.control_launches import control_launches

# One shape of every kernel; `python -m bench.kernel_resources` has them all.
ALL = control_launches()
LAUNCHES = {launch.kernel.__name__: launch for launch in ALL.values()}
LAUNCHES |= {name: launch for name, launch in ALL.items() if name.startswith("plan_")}


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", LAUNCHES)
def test_compiles(name: str, capability: int) -> None:
    usage = aot.usage(aot.compile_launch(LAUNCHES[name], capability))
    assert usage.stack_bytes == 0, f"{name} spills: {usage}"
