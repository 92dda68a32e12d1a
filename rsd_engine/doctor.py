"""Shows what is installed, what was built and what will run: `python -m rsd_engine.doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass

import torch

from rsd_engine.loop.executors.factory import resolve_executor
from rsd_engine.memory.available import host_available_bytes
from rsd_kernels.cpu import library as cpu_library
from rsd_kernels.cuda import decode_projection
from rsd_kernels.cuda import library as cuda_library
from rsd_kernels.model_ops import model_ops
from rsd_kernels.native.library import LibraryStatus

_PACKAGES = ("rsd-engine", "torch", "triton", "transformers")
_ABSENT = {"triton": "not installed (needed on a GPU)"}


@dataclass(frozen=True)
class Device:
    name: str
    detail: str


@dataclass(frozen=True)
class DoctorReport:
    """Facts about this machine and installation."""

    python: str
    packages: dict[str, str | None]  # version, or None if not installed
    flash_attn: str | None
    cpu_threads: int
    devices: tuple[Device, ...]
    no_gpu_reason: str | None  # why there is no GPU, or None if there is one
    cuda_library: LibraryStatus
    cpu_library: LibraryStatus
    attention_backend: str
    decode_products: str
    executor: str

    def lines(self) -> list[tuple[str, str]]:
        """(label, text) in the order to show them."""
        rows = [("Python", self.python)]
        rows += [
            (name, version or _ABSENT.get(name, "not installed"))
            for name, version in self.packages.items()
        ]
        rows.append(("flash-attn", self.flash_attn or "not installed (not needed)"))
        rows += [("device", f"{device.name}, {device.detail}") for device in self.devices]
        if self.no_gpu_reason is not None:
            rows.append(("GPU", f"none ({self.no_gpu_reason})"))
        rows.append(("CUDA library", str(self.cuda_library)))
        rows.append(("CPU library", str(self.cpu_library)))
        rows.append(("attention", self.attention_backend))
        rows.append(("decode products", self.decode_products))
        rows.append(("executor", self.executor))
        return rows

    def text(self) -> str:
        """`lines` as a table."""
        rows = self.lines()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def report() -> DoctorReport:
    """Collects the facts.

    Raises:
        ValueError: RSD_DECODE_PROJECTION names no implementation.
    """
    threads = torch.get_num_threads()
    memory = f"{host_available_bytes() / 2**30:.1f} GiB of memory available"
    cpu = Device("cpu", f"{platform.machine()}, {threads} threads, {memory}")
    gpus = _gpus()
    return DoctorReport(
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        flash_attn=_version("flash-attn") if importlib.util.find_spec("flash_attn") else None,
        cpu_threads=threads,
        devices=(cpu, *gpus),
        no_gpu_reason=None if gpus else _no_gpu_reason(),
        cuda_library=cuda_library.status(),
        cpu_library=cpu_library.status(),
        attention_backend=_backend("cuda" if gpus else "cpu"),
        decode_products=_decode_products(on_gpu=bool(gpus)),
        executor=resolve_executor("auto", torch.device("cuda" if gpus else "cpu")),
    )


def _backend(device: str) -> str:
    """The backend of a model in the dtype that it would have on this device."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return model_ops(torch.empty(0, dtype=dtype, device=device)).backend


def _decode_products(*, on_gpu: bool) -> str:
    """What multiplies the few rows of a decode pass, and what would on a GPU if that was chosen."""
    implementation = decode_projection.chosen()
    there = decode_projection.describe(implementation)
    if on_gpu:
        return there
    chosen_here = implementation != decode_projection.IMPLEMENTATIONS[0]
    return f"{_backend('cpu')}; on a GPU {there}" if chosen_here else _backend("cpu")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[Device, ...]:
    if not torch.cuda.is_available():
        return ()
    return tuple(_gpu(index) for index in range(torch.cuda.device_count()))


def _gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    gib = properties.total_memory / 2**30
    capability = f"sm_{properties.major}{properties.minor}"
    return Device(f"cuda:{index}", f"{properties.name}, {capability}, {gib:.0f} GiB")


def _no_gpu_reason() -> str:
    if torch.version.cuda is None:
        return f"this build of torch, {torch.__version__}, has no CUDA"
    return "torch sees no CUDA device"


def main() -> int:
    print(report().text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
