"""The CUDA library's decode projection: its choice, its source on the CPU, compiled, on a GPU."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_engine import doctor
from rsd_kernels.cuda import build as cuda_build
from rsd_kernels.cuda import decode_projection as projection
from rsd_kernels.cuda import library as cuda_library
from rsd_kernels.linear import twin
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.native.library import LibraryStatus
from tests.kernels.harness.tensors import assert_close

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# outputs, inputs: one output; less than a block; odd; several batches of loads, split and not
SHAPES = [(1, 8), (5, 64), (33, 1528), (3, 4104), (160, 1032), (7, 8200)]
# What is fused into the product; the ops of a decoder, and two more that hold more at once.
KINDS = ["", "bias", "bias residual", "fp32", "norm", "norm bias fp32", "norm gated bias"]
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    x: Tensor
    weight: LinearWeight
    norm: Tensor | None
    residual: Tensor | None
    gated: bool
    out_dtype: torch.dtype

    @property
    def num_outputs(self) -> int:
        return self.weight.num_outputs // (2 if self.gated else 1)

    @property
    def num_terms(self) -> int:
        return self.weight.num_inputs + 4

    def first(self, num_rows: int) -> Case:
        residual = None if self.residual is None else self.residual[:num_rows]
        return replace(self, x=self.x[:num_rows], residual=residual)

    def to(self, dtype: torch.dtype) -> Case:
        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        weight = LinearWeight(self.weight.matrix.to(dtype), cast(self.weight.bias))
        wide = replace(self, x=self.x.to(dtype), weight=weight, norm=cast(self.norm))
        return replace(wide, residual=cast(self.residual), out_dtype=dtype)

    def fused(self) -> dict[str, Any]:
        """What the launcher is told beside x and the weight."""
        return {
            "residual": self.residual, "norm": self.norm, "eps": EPS, "gated": self.gated,
        }  # fmt: skip

    def by_twin(self) -> Tensor:
        """In the dtype of x."""
        x, weight = self.x, self.weight
        if self.norm is None:
            return twin.linear(x, weight, residual=self.residual)
        out = x.new_empty(x.shape[0], self.num_outputs)
        scratch: dict[str, Any] = {"normed": torch.empty_like(x), "out": out}
        if not self.gated:
            return twin.norm_linear(x, self.norm, EPS, weight, **scratch)
        gate_up = x.new_empty(x.shape[0], weight.num_outputs)
        return twin.norm_gate_up(x, self.norm, EPS, weight, **scratch, gate_up=gate_up)


def make_case(
    num_rows: int,
    num_outputs: int,
    num_inputs: int,
    dtype: torch.dtype,
    kind: str = "",
    *,
    device: str = "cpu",
) -> Case:
    """Rows lie apart, with NaN between them, so that reading past a row shows."""
    seed = num_rows * 7919 + num_outputs * 31 + num_inputs
    generator = torch.Generator(device).manual_seed(seed)

    def rows(count: int, width: int, pad: int = 16) -> Tensor:
        padded = torch.full((count, width + pad), float("nan"), device=device)
        padded[:, :width] = torch.randn(count, width, generator=generator, device=device)
        return padded.to(dtype)[:, :width]

    parts = kind.split()
    gated = "gated" in parts
    num_weight_rows = 2 * num_outputs if gated else num_outputs
    return Case(
        x=rows(num_rows, num_inputs),
        weight=LinearWeight(
            rows(num_weight_rows, num_inputs),
            rows(1, num_weight_rows)[0] if "bias" in parts else None,
        ),
        norm=rows(1, num_inputs)[0] if "norm" in parts else None,
        residual=rows(num_rows, num_outputs, pad=3) if "residual" in parts else None,
        gated=gated,
        out_dtype=torch.float32 if "fp32" in parts else dtype,
    )


def require_exact(found: Tensor, case: Case) -> None:
    """At most twice PyTorch's error against float64."""
    exact = case.to(torch.float64).by_twin()
    assert_close(found, case.by_twin().to(case.out_dtype), exact, num_terms=case.num_terms)


# ---- the choice


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library had never been built."""
    monkeypatch.setattr(cuda_library, "load", lambda: None)
    status = LibraryStatus("absent", "nvcc was not found")
    monkeypatch.setattr(cuda_library, "status", lambda: status)
    projection._warn_once.cache_clear()


def test_triton_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(projection.SWITCH, raising=False)
    assert projection.chosen() == "triton"
    for value, wanted in (("", "triton"), ("triton", "triton"), ("cuda", "cuda")):
        monkeypatch.setenv(projection.SWITCH, value)
        assert projection.chosen() == wanted
    assert projection.library_for("triton") is None


@pytest.mark.parametrize("value", ["CUDA", "1", "cublas"])
def test_another_choice_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(projection.SWITCH, value)
    message = f"RSD_DECODE_PROJECTION='{value}' is not allowed; allowed: triton, cuda"
    for asks in (projection.chosen, doctor.report):
        with pytest.raises(ValueError, match=message):
            asks()


@pytest.mark.usefixtures("absent")
def test_without_the_library_triton_stays_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="rsd_kernels"):
        assert projection.library_for("triton") is None
        assert not caplog.records
        for _ in range(3):
            assert projection.library_for("cuda") is None
    [record] = caplog.records
    reason = (
        "Triton (RSD_DECODE_PROJECTION=cuda, but the CUDA library is absent (nvcc was not found))"
    )
    assert record.getMessage() == f"decode products: {reason}"


@pytest.mark.usefixtures("absent")
def test_doctor_says_what_makes_decode_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        return dict(doctor.report().lines())["decode products"]

    if torch.cuda.is_available():
        pytest.skip("this machine has a device, and doctor speaks of that")
    backend = dict(doctor.report().lines())["attention"]
    monkeypatch.delenv(projection.SWITCH, raising=False)
    assert said() == backend
    monkeypatch.setenv(projection.SWITCH, "cuda")
    why = "RSD_DECODE_PROJECTION=cuda, but the CUDA library is absent (nvcc was not found)"
    assert said() == f"{backend}; on a GPU Triton ({why})"
    monkeypatch.setattr(cuda_library, "load", lambda: object())
    assert said() == f"{backend}; on a GPU CUDA C++ for up to 4 rows, else Triton"


REFUSED: list[tuple[str, Callable[[], tuple[Tensor, Tensor, Tensor | None]], str]] = [
    (
        "another dtype of the weight",
        lambda: (torch.zeros(2, 64), torch.zeros(3, 64, dtype=torch.bfloat16), None),
        "x has dtype torch.float32 and the weight torch.bfloat16",
    ),
    (
        "odd inputs",
        lambda: (torch.zeros(2, 62), torch.zeros(3, 62), None),
        "x has 62 columns; .* multiple of 4",
    ),
    (
        "start of x",
        lambda: (torch.zeros(1, 68)[:, 1:65], torch.zeros(3, 64), None),
        "x has rows that do not start at a multiple of 16 bytes",
    ),
    (
        "rows of the weight",
        lambda: (torch.zeros(2, 64), torch.zeros(3, 66)[:, :64], None),
        "the weight has rows that do not start",
    ),
    (
        "norm",
        lambda: (torch.zeros(2, 64), torch.zeros(3, 64), torch.zeros(65)[1:]),
        "norm has rows that do not start",
    ),
    ("device", lambda: (torch.zeros(2, 64), torch.zeros(3, 64), None), "x is on cpu; .* CUDA"),
]


@pytest.mark.parametrize(
    ("make", "message"), [pytest.param(make, message, id=name) for name, make, message in REFUSED]
)
def test_what_the_kernel_does_not_take(
    make: Callable[[], tuple[Tensor, Tensor, Tensor | None]], message: str
) -> None:
    x, matrix, norm = make()
    reason = projection.refusal(x, LinearWeight(matrix), norm)
    assert reason is not None and re.match(message, reason), reason


# ---- the source on the CPU


def test_python_and_header_agree() -> None:
    sources = cuda_build.LIBRARY.source_folder()
    assert sources is not None
    header = (sources / "rsd_kernels.h").read_text()
    abi = re.search(r"#define RSD_ABI_VERSION (\d+)", header)
    assert abi is not None
    assert int(abi[1]) == cuda_library.ABI_VERSION
    codes = dict(re.findall(r"RSD_DTYPE_(\w+) = (\d+)", header))
    names = {dtype: str(dtype).removeprefix("torch.").upper() for dtype in projection.DTYPE_CODES}
    assert {names[d]: str(code) for d, code in projection.DTYPE_CODES.items()} == codes
    flags = dict(re.findall(r"RSD_PROJECTION_(\w+) = (\d+)", header))
    assert flags == {name: str(getattr(projection, name)) for name in flags}
    assert len(flags) == 3
    body = header[header.index("typedef struct {") : header.index("} RsdProjection;")]
    kinds = {
        "void*": ctypes.c_void_p, "int64_t": ctypes.c_int64, "float": ctypes.c_float,
        "int32_t": ctypes.c_int32,
    }  # fmt: skip
    declared = re.findall(r"^    (?:const )?(void\*|\w+) (\w+);", body, re.MULTILINE)
    assert [(name, kinds[kind]) for kind, name in declared] == cuda_library.Projection._fields_


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> cuda_library.Library:
    """The CUDA sources compiled for the CPU, where the threads of a block take turns."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to compile the CUDA sources for the CPU")
    sources = cuda_build.LIBRARY.source_folder()
    assert sources is not None
    made = tmp_path_factory.mktemp("emulated") / "emulated.so"
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-o", str(made)]
    command += ["-I", str(Path(__file__).with_name("emulation")), "-I", str(sources)]
    command += ['-DRSD_SOURCE_HASH="emulated"', "-x", "c++"]
    command += [str(path) for path in sorted(sources.glob("*.cu"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cuda_library.Library(ctypes.CDLL(str(made)))


def run_emulated(library: cuda_library.Library, case: Case, out: Tensor) -> None:
    product = projection.projection_struct(case.x, case.weight, out=out, **case.fused())
    library.check(library.decode_projection(product, 0, None), "decode_projection")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "kind"),
    [
        *((*shape, "bias" if shape[0] % 2 else "") for shape in SHAPES),
        *((*shape, kind) for shape in [(5, 64), (19, 1032)] for kind in KINDS[2:]),
        (3, 4104, "norm gated bias"),
    ],
)
def test_cuda_source_run_on_the_cpu(
    emulated: cuda_library.Library,
    num_outputs: int,
    num_inputs: int,
    kind: str,
    dtype: torch.dtype,
) -> None:
    whole = make_case(4, num_outputs, num_inputs, dtype, kind)
    alone = None
    for num_rows in (1, 2, 3, 4):
        case = whole.first(num_rows)
        padded = torch.full((num_rows + 1, num_outputs + 3), 7.0, dtype=case.out_dtype)
        out = padded[:num_rows, :num_outputs]
        run_emulated(emulated, case, out)
        require_exact(out, case)
        assert bool((padded[num_rows:] == 7).all())
        assert bool((padded[:, num_outputs:] == 7).all())
        alone = out[:1].clone() if alone is None else alone
        assert torch.equal(out[:1], alone), "a row's bits depend on the rows beside it"


def test_a_residual_may_be_the_output(emulated: cuda_library.Library) -> None:
    case = make_case(3, 33, 64, torch.bfloat16, "bias residual")
    assert case.residual is not None
    wanted = torch.empty(3, 33, dtype=torch.bfloat16)
    run_emulated(emulated, case, wanted)
    run_emulated(emulated, case, case.residual)
    assert torch.equal(case.residual, wanted)


def test_fp16_does_not_overflow_before_the_norm(emulated: cuda_library.Library) -> None:
    x = torch.full((2, 64), 6e4, dtype=torch.float16)
    weight = LinearWeight(torch.eye(8, 64, dtype=torch.float16))
    norm = torch.full((64,), 4.0, dtype=torch.float16)
    out = torch.full((2, 8), float("nan"), dtype=torch.float16)
    run_emulated(emulated, Case(x, weight, norm, None, False, torch.float16), out)
    assert torch.equal(out, torch.full_like(out, 4.0))


def test_library_names_the_error(emulated: cuda_library.Library) -> None:
    case = make_case(4, 3, 64, torch.float32, "norm")
    assert case.norm is not None
    crooked = {
        "x": replace(case, x=case.x[:, 1:61], weight=LinearWeight(case.weight.matrix[:, :60])),
        "norm": replace(case, norm=case.norm[1:]),
    }
    for wrong in crooked.values():
        with pytest.raises(cuda_library.CudaLibraryError, match="not 16-byte aligned"):
            run_emulated(emulated, wrong, torch.zeros(4, 3))


# ---- compiled


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


NUM_KERNELS = 3 * 4 * 2  # dtypes, one to four rows, with and without a norm


def test_compiles_for_every_arch_without_spills(compiled: Compiled) -> None:
    said = compiled.said
    assert sorted(path.name for path in compiled.folder.iterdir()) == [
        "sm_100.cubin",
        "sm_80.cubin",
        "sm_90a.cubin",
    ]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert len(spills) == 3 * NUM_KERNELS
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
        assert len(kernels) == NUM_KERNELS
        for kernel in kernels:
            assert (kernel.count(allow), kernel.count(wait)) == (1, 1)
            before, after = kernel.split(wait)
            assert allow in before
            assert "ld.global.nc" in before, "no weight is fetched before the wait"
            assert "st.global" not in before
            plain_load = re.compile(r"ld\.global\.(?!nc)")
            assert not plain_load.search(before), "x is read before the wait"
            assert plain_load.search(after)


# ---- on a GPU


@pytest.fixture
def library() -> cuda_library.Library:
    found = cuda_library.load()
    if found is None:
        pytest.skip(f"the CUDA library is {cuda_library.status()}")
    return found


def launch(library: cuda_library.Library, case: Case, out: Tensor) -> None:
    assert projection.launch(library, case.x, case.weight, out=out, **case.fused())


LARGE = [
    (1536, 8960, "bias residual"),
    (8960, 1536, "norm gated bias"),
    (2048, 1536, "norm bias fp32"),
    (151936, 1536, "fp32"),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "kind"),
    [*((*shape, kind) for shape in SHAPES for kind in KINDS), *LARGE],
)
def test_kernel_is_as_exact_as_the_twin(
    num_outputs: int,
    num_inputs: int,
    kind: str,
    dtype: torch.dtype,
    library: cuda_library.Library,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make_case(4, num_outputs, num_inputs, dtype, kind, device="cuda")
    alone = None
    for num_rows in (1, 2, 3, 4):
        case = whole.first(num_rows)
        for overlap in ("0", "1"):
            monkeypatch.setenv("RSD_OVERLAP_KERNELS", overlap)
            out = torch.full((num_rows, num_outputs), float("nan"), device="cuda")
            out = out.to(case.out_dtype)
            launch(library, case, out)
            require_exact(out, case)
            alone = out[:1].clone() if alone is None else alone
            assert torch.equal(out[:1], alone), "a row's bits depend on the rows beside it"


@pytest.mark.gpu
def test_kernel_runs_inside_a_cuda_graph(library: cuda_library.Library) -> None:
    case = make_case(2, 160, 1032, torch.bfloat16, "norm gated bias", device="cuda")
    case = replace(case, x=case.x.contiguous())
    out = torch.empty(2, 160, dtype=torch.bfloat16, device="cuda")
    wanted = torch.empty_like(out)
    launch(library, case, out)  # loads the kernel before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(library, case, out)
    case.x.neg_()
    graph.replay()
    launch(library, case, wanted)
    assert torch.equal(out, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [False, True])
def test_overlapped_launches_wait_for_each_other(
    captured: bool, library: cuda_library.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain in which every launch reads what the one before it wrote, back and forth."""
    size = 1024
    generator = torch.Generator("cuda").manual_seed(0)
    matrices = torch.randn(8, size, size, device="cuda", generator=generator).bfloat16()
    weights = [LinearWeight(matrix * size**-0.5) for matrix in matrices]
    first = torch.randn(1, size, device="cuda", generator=generator).bfloat16()
    rows = [first.clone(), torch.empty_like(first)]

    def chain() -> None:
        for i in range(40):
            assert projection.launch(library, rows[i % 2], weights[i % 8], out=rows[(i + 1) % 2])

    monkeypatch.setenv("RSD_OVERLAP_KERNELS", "0")
    chain()
    wanted = rows[0].clone()
    assert bool(wanted.isfinite().all())
    monkeypatch.setenv("RSD_OVERLAP_KERNELS", "1")
    run = chain
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            chain()
        run = graph.replay
    for _ in range(20):
        rows[0].copy_(first)
        run()
        assert torch.equal(rows[0], wanted)
