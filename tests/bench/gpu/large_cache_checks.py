"""The same for large models, which takes minutes. Run by `test_cache.py`."""

from __future__ import annotations

import pytest

from bench.gpu import engines
from bench.gpu.engines import ENGINES
from bench.gpu.launches import SOURCES
from rsd_engine.roofline.formats import find_format
from rsd_kernels.aot.compile import compile_launch, loop_instructions
from tests.bench.gpu.cache_checks import OTHER_MEMORY, not_compiled


def test_instructions_that_a_weight_in_few_bits_takes() -> None:
    """What the roofline counts with is what is in the compiled loops, for o and down of a 7B."""
    found = {}
    for launch in SOURCES["weight_formats"]():
        form = launch.args.get("FORMAT")
        if form is None or launch.overlap or launch.args["NUM_INPUTS"] != 18944:  # down
            continue
        weight = launch.args["weight"]
        if launch.args["num_rows"] == 1 and weight.zeros is None and weight.order is None:
            found[form.kind] = launch
    for kind, launch in found.items():
        threads, weights = 32 * launch.num_warps, launch.args["BLOCK_N"] * launch.args["BLOCK_K"]
        counted = loop_instructions(compile_launch(launch, 90)) * threads / weights
        assert counted == pytest.approx(find_format(kind).instructions, rel=0.1)
    assert found.keys() == {"int4", "int8", "fp8"}


@pytest.mark.parametrize(("source", "slots"), [("device_loop", 64), ("memory", 8)])
def test_every_launch_of_large_models_is_compiled_beforehand(source: str, slots: int) -> None:
    """The shapes of Qwen2.5-1.5B and 7B, with other memory."""
    found = engines.launches(ENGINES[source], free_memory=OTHER_MEMORY)
    assert found[0].args["state"].num_slots == slots
    assert not not_compiled(found, source)
