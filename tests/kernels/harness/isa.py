"""The instruction sets that the CPU library has code for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rsd_kernels.cpu import library as cpu_library


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The library runs the code for each of them, where this machine can."""
    library = cpu_library.load()
    if library is None:
        pytest.skip(f"the CPU library is {cpu_library.status()}")
    before = library.isa
    try:
        library.choose_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    library.choose_isa(before)
