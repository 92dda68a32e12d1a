"""The decode projection: the twin, the launcher's checks, the CUDA source, the kernel."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_kernels.cuda import build as cuda_build
from rsd_kernels.cuda import library as cuda_library
from rsd_kernels.cuda.decode_projection import _DTYPE_CODE, decode_projection
from rsd_kernels.cuda.twin import decode_projection as twin

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# outputs, inputs: one output; less than a block; odd; several batches of loads, split and not
SHAPES = [(1, 8), (5, 64), (33, 1528), (3, 4104), (160, 1032), (7, 8200)]


@dataclass(frozen=True)
class Case:
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    exact: Tensor  # float64


def make_case(
    num_rows: int, num_outputs: int, num_inputs: int, dtype: torch.dtype, *, bias: bool, device: str
) -> Case:
    """Rows lie apart, with NaN between them, so that reading past a row shows."""
    generator = torch.Generator().manual_seed(num_rows * 7919 + num_outputs * 31 + num_inputs)

    def rows(count: int) -> Tensor:
        padded = torch.full((count, num_inputs + 16), float("nan"))
        padded[:, :num_inputs] = torch.randn(count, num_inputs, generator=generator)
        return padded.to(dtype).to(device)[:, :num_inputs]

    x, weight = rows(num_rows), rows(num_outputs)
    vector = torch.randn(num_outputs, generator=generator).to(dtype).to(device) if bias else None
    exact = x.double() @ weight.double().T
    return Case(x, weight, vector, exact if vector is None else exact + vector.double())


def rounding_bound(case: Case) -> Tensor:
    """What summing in float32 and rounding once to the dtype may cost.

    PyTorch may round before it adds the bias and once after: two roundings.
    """
    terms = case.x.double().abs() @ case.weight.double().abs().T
    if case.bias is not None:
        terms = terms + case.bias.double().abs()
    largest = case.exact.abs()
    if case.bias is not None:
        largest = largest + case.bias.double().abs()
    in_sum = torch.finfo(torch.float32).eps * case.x.shape[1] ** 0.5 * terms
    return torch.finfo(case.x.dtype).eps * largest + in_sum


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
@pytest.mark.parametrize("num_rows", [0, 1, 4])
def test_twin_is_within_rounding_of_float64(
    num_rows: int, num_outputs: int, num_inputs: int, bias: bool, dtype: torch.dtype
) -> None:
    case = make_case(num_rows, num_outputs, num_inputs, dtype, bias=bias, device="cpu")
    out = torch.full((num_rows, num_outputs), float("nan"), dtype=dtype)
    result = twin(case.x, case.weight, case.bias, out=out)
    assert result is out
    assert torch.equal(result, twin(case.x, case.weight, case.bias))
    assert bool(((result.double() - case.exact).abs() <= rounding_bound(case)).all())


def good_arguments() -> dict[str, Any]:
    return {"x": torch.zeros(2, 64), "weight": torch.zeros(3, 64), "out": torch.zeros(2, 3)}


BAD_ARGUMENTS: list[tuple[str, dict[str, Callable[[], Tensor]], str]] = [
    ("one dimension", {"x": lambda: torch.zeros(64)}, r"x has shape \[64\]; .*2 dimensions"),
    (
        "too many rows",
        {"x": lambda: torch.zeros(5, 64), "out": lambda: torch.zeros(5, 3)},
        r"x has 5 rows; .* at most 4",
    ),
    ("inputs differ", {"weight": lambda: torch.zeros(3, 32)}, r"weight has shape \[3, 32\]; .* 64"),
    ("out shape", {"out": lambda: torch.zeros(2, 4)}, r"out has shape \[2, 4\]; .*\[2, 3\]"),
    ("bias shape", {"bias": lambda: torch.zeros(4)}, r"bias has shape \[4\]; .*\[3\]"),
    (
        "dtype",
        {"x": lambda: torch.zeros(2, 64, dtype=torch.float64)},
        r"x has dtype torch.float64; allowed: .*bfloat16",
    ),
    (
        "dtypes differ",
        {"weight": lambda: torch.zeros(3, 64, dtype=torch.bfloat16)},
        r"weight has dtype torch.bfloat16; .*float32",
    ),
    (
        "strided inputs",
        {"weight": lambda: torch.zeros(64, 3).T},
        r"weight has strides \(1, 3\); .*contiguous",
    ),
    ("strided out", {"out": lambda: torch.zeros(3, 2).T}, r"out has strides \(1, 2\)"),
    (
        "strided bias",
        {"bias": lambda: torch.zeros(3, 2)[:, 0]},
        r"bias has strides \(2,\); .*contiguous",
    ),
    (
        "odd inputs",
        {"x": lambda: torch.zeros(2, 62), "weight": lambda: torch.zeros(3, 62)},
        r"x has 62 columns; .* multiple of 4",
    ),
    (
        "misaligned start",
        {"x": lambda: torch.zeros(2, 68)[:, 1:65]},
        "x starts at an address that is not a multiple of 16",
    ),
    (
        "misaligned rows",
        {"weight": lambda: torch.zeros(3, 66)[:, :64]},
        "weight has rows 264 bytes apart; it must be a multiple of 16",
    ),
    ("device", {}, "x is on cpu; this kernel runs on CUDA devices only"),
    (
        "devices differ in kind",
        {"x": lambda: torch.zeros(2, 64, device="meta")},
        "x is on meta; this kernel runs on CUDA devices only",
    ),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [pytest.param(changes, message, id=name) for name, changes, message in BAD_ARGUMENTS],
)
def test_launcher_names_the_bad_argument(
    changes: dict[str, Callable[[], Tensor]], message: str
) -> None:
    arguments = good_arguments() | {name: make() for name, make in changes.items()}
    with pytest.raises(ValueError, match=message):
        decode_projection(**arguments)


def test_python_and_header_agree() -> None:
    sources = cuda_build.LIBRARY.source_folder()
    assert sources is not None
    header = (sources / "rsd_kernels.h").read_text()
    abi = re.search(r"#define RSD_ABI_VERSION (\d+)", header)
    assert abi is not None
    assert int(abi[1]) == cuda_library.ABI_VERSION
    codes = dict(re.findall(r"RSD_DTYPE_(\w+) = (\d+)", header))
    assert {str(d).removeprefix("torch.").upper(): str(c) for d, c in _DTYPE_CODE.items()} == codes


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> cuda_library.Library:
    """The CUDA sources compiled for the CPU, a host thread for every CUDA thread."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the CUDA sources for the CPU")
    sources = cuda_build.LIBRARY.source_folder()
    assert sources is not None
    made = tmp_path_factory.mktemp("emulated") / "emulated.so"
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-o", str(made)]
    command += ["-I", str(Path(__file__).with_name("emulation")), "-I", str(sources)]
    command += ['-DRSD_SOURCE_HASH="emulated"', "-x", "c++"]
    command += [str(path) for path in sorted(sources.glob("*.cu"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cuda_library.Library(ctypes.CDLL(str(made)))


def run_emulated(library: cuda_library.Library, case: Case, out: Tensor) -> None:
    x, weight, bias = case.x, case.weight, case.bias
    code = library.decode_projection(
        out.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        x.shape[0],
        weight.shape[0],
        x.shape[1],
        out.stride(0),
        x.stride(0),
        weight.stride(0),
        _DTYPE_CODE[x.dtype],
        0,
        0,
        None,
    )
    library.check(code, "decode_projection")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
def test_cuda_source_run_on_the_cpu(
    emulated: cuda_library.Library, num_outputs: int, num_inputs: int, dtype: torch.dtype
) -> None:
    bias = num_outputs % 2 == 1
    alone = None
    for num_rows in (1, 2, 3, 4):
        case = make_case(4, num_outputs, num_inputs, dtype, bias=bias, device="cpu")
        case = Case(case.x[:num_rows], case.weight, case.bias, case.exact[:num_rows])
        padded = torch.full((num_rows + 1, num_outputs + 3), 7.0, dtype=dtype)
        out = padded[:num_rows, :num_outputs]
        run_emulated(emulated, case, out)
        assert bool(((out.double() - case.exact).abs() <= rounding_bound(case)).all())
        assert bool((padded[num_rows:] == 7).all())
        assert bool((padded[:, num_outputs:] == 7).all())
        alone = out[:1].clone() if alone is None else alone
        assert torch.equal(out[:1], alone), "a row's bits depend on the rows beside it"


def test_library_names_the_error(emulated: cuda_library.Library) -> None:
    case = make_case(4, 3, 64, torch.float32, bias=False, device="cpu")
    crooked = Case(case.x[:, 1:61], case.weight[:, :60], None, case.exact)
    with pytest.raises(cuda_library.CudaLibraryError, match="not 16-byte aligned"):
        run_emulated(emulated, crooked, torch.zeros(4, 3))


@dataclass(frozen=True)
class Compiled:
    folder: Path  # one cubin an architecture
    said: str  # of the assembler, about every kernel
    ptx: dict[str, str]  # by architecture


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The kernels made by nvcc."""
    search = cuda_build.find_nvcc(os.environ)
    if search.path is None:
        pytest.skip(search.reason)
    sources = cuda_build.LIBRARY.source_folder()
    assert sources is not None
    folder = tmp_path_factory.mktemp("compiled")
    said, ptx = [], {}
    for arch in ("80", "90a", "100"):
        kept = tmp_path_factory.mktemp(f"sm_{arch}")
        command = [str(search.path), "-cubin", "-std=c++17", "-O3", "-Xptxas=-v"]
        command += [f"-arch=sm_{arch}", "-o", str(folder / f"sm_{arch}.cubin")]
        command += ["--keep", "--keep-dir", str(kept)]
        done = subprocess.run(
            [*command, str(sources / "decode_projection.cu")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stderr + done.stdout)
        ptx[arch] = "".join(path.read_text() for path in kept.glob("*.ptx"))
    return Compiled(folder, "\n".join(said), ptx)


def test_compiles_for_every_arch_without_spills(compiled: Compiled) -> None:
    said = compiled.said
    assert sorted(path.name for path in compiled.folder.iterdir()) == [
        "sm_100.cubin",
        "sm_80.cubin",
        "sm_90a.cubin",
    ]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    # three architectures, three dtypes, one to four rows
    assert len(spills) == 3 * 3 * 4
    assert set(spills) == {("0", "0")}
    # two blocks of 256 threads fit on a multiprocessor
    assert max(int(count) for count in re.findall(r"Used (\d+) registers", said)) <= 128


def test_launches_overlap_where_the_device_can(compiled: Compiled) -> None:
    """Each kernel lets the next one start before its first load, and waits before x is read."""
    allow, wait = "griddepcontrol.launch_dependents", "griddepcontrol.wait"
    assert ".entry" in compiled.ptx["80"]
    assert "griddepcontrol" not in compiled.ptx["80"]
    for arch in ("90a", "100"):
        kernels = compiled.ptx[arch].split(".entry")[1:]
        assert len(kernels) == 3 * 4  # dtypes, rows
        for kernel in kernels:
            assert (kernel.count(allow), kernel.count(wait)) == (1, 1)
            before, after = kernel.split(wait)
            assert allow in before
            assert "ld.global.nc" in before, "no weight is fetched before the wait"
            assert "st.global" not in before
            plain_load = re.compile(r"ld\.global\.(?!nc)")
            assert not plain_load.search(before), "x is read before the wait"
            assert plain_load.search(after)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [*SHAPES, (1536, 8960), (151936, 1536)])
@pytest.mark.parametrize("overlap_previous", [False, True])
def test_kernel_is_as_exact_as_torch(
    num_outputs: int, num_inputs: int, dtype: torch.dtype, overlap_previous: bool
) -> None:
    if cuda_library.load() is None:
        pytest.skip(f"the CUDA library is {cuda_library.status()}")
    whole = make_case(4, num_outputs, num_inputs, dtype, bias=True, device="cuda")
    alone = None
    for num_rows in (1, 2, 3, 4):
        x = whole.x[:num_rows]
        out = torch.full((num_rows, num_outputs), float("nan"), dtype=dtype, device="cuda")
        decode_projection(x, whole.weight, whole.bias, out=out, overlap_previous=overlap_previous)
        exact = whole.exact[:num_rows]
        plain = twin(x, whole.weight, whole.bias)
        allowed = 2 * (plain.double() - exact).abs().max()
        # one output may by luck be exact in plain PyTorch: half a unit in the last place is allowed
        allowed = allowed.clamp_min(torch.finfo(dtype).eps * float(exact.abs().max()))
        assert float((out.double() - exact).abs().max()) <= float(allowed)
        alone = out[:1].clone() if alone is None else alone
        assert torch.equal(out[:1], alone), "a row's bits depend on the rows beside it"


@pytest.mark.gpu
def test_kernel_runs_inside_a_cuda_graph() -> None:
    if cuda_library.load() is None:
        pytest.skip(f"the CUDA library is {cuda_library.status()}")
    case = make_case(2, 160, 1032, torch.bfloat16, bias=True, device="cuda")
    x = case.x.contiguous()
    out = torch.empty(2, 160, dtype=torch.bfloat16, device="cuda")
    decode_projection(x, case.weight, case.bias, out=out)  # loads the kernel before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode_projection(x, case.weight, case.bias, out=out)
    x.neg_()
    graph.replay()
    assert torch.equal(out, decode_projection(x, case.weight, case.bias))


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [False, True])
def test_overlapped_launches_wait_for_each_other(captured: bool) -> None:
    """A chain in which every launch reads what the one before it wrote, back and forth."""
    if cuda_library.load() is None:
        pytest.skip(f"the CUDA library is {cuda_library.status()}")
    size = 1024
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(8, size, size, device="cuda", generator=generator).bfloat16() * size**-0.5
    first = torch.randn(1, size, device="cuda", generator=generator).bfloat16()
    rows = [first.clone(), torch.empty_like(first)]

    def chain(overlap: bool) -> None:
        for i in range(40):
            x, out = rows[i % 2], rows[(i + 1) % 2]
            decode_projection(x, weight[i % 8], out=out, overlap_previous=overlap)

    chain(overlap=False)
    wanted = rows[0].clone()
    assert bool(wanted.isfinite().all())
    run = lambda: chain(overlap=True)  # noqa: E731
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    for _ in range(20):
        rows[0].copy_(first)
        run()
        assert torch.equal(rows[0], wanted)
