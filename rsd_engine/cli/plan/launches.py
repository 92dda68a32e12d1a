"""`rsd plan --launches`: the time that a tick should take, kernel by kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.plan.device import find_device
from rsd_engine.cli.plan.models import ModelOptions, find_models
from rsd_engine.cli.plan.show import rounded, table
from rsd_engine.engine.memory_estimate import ModelMemory
from rsd_engine.models.config import DTYPES
from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.launch_times import READ_SHARE, Load
from rsd_engine.roofline.tick_times import KernelTime, TickTime, tick_time
from rsd_engine.roofline.ticks import MAX_TICK_ROWS, decode_tick
from rsd_kernels.launch import available
from rsd_kernels.state.enums import Role

_SEQUENCES = (1, 4, 16)  # always shown
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class LaunchesOptions:
    """The options of the command that count here; None as in `PlanOptions`."""

    draft: str | None
    target: str | None
    revision: str | None
    gpu: str | None
    bandwidth: float | None  # GB/s, of the best read
    slots: int
    context: int
    dtype: str | None
    quantization: str | None
    as_json: bool


@dataclass(frozen=True)
class _Times:
    """The ticks of one load: kernels that wait for one another, and kernels that start early."""

    sequences: int
    plain: TickTime
    early: TickTime


def print_launches(options: LaunchesOptions) -> None:
    """Prints what a tick of each writer should take.

    Raises:
        UsageError: an option is missing or has no such value, or Triton is not installed.
        ValueError: there is no such model, or the engine does not run its kind.
    """
    device, sources = _device(options), _sources(options)
    models = find_models(
        ModelOptions(
            sources, options.revision, on_cpu=False, dtype=options.dtype,
            quantization=options.quantization, prm_format=None,
        )
    )  # fmt: skip
    if options.slots > MAX_TICK_ROWS:
        raise UsageError(
            f"slots must be in [1, {MAX_TICK_ROWS}] with --launches, got {options.slots}: wider "
            "passes are products of cuBLAS"
        )
    if not available():
        raise UsageError('--launches asks the Triton launchers; run: pip install "triton>=3.6"')
    if not options.as_json:
        typer.echo(_head(options, device))
    found: dict[str, Any] = {}
    for role, model in models.items():
        source = sources[role]
        times = list(_times(model.memory, role, options, device))
        held = model.memory.weights_format
        weights = "" if held is None else f"{held.name} and "
        name = f"{role.name.lower()} {source}, {weights}{_DTYPE_NAMES[model.memory.dtype]}"
        if options.as_json:
            found[role.name.lower()] = {"source": source, "ticks": _dicts(times, device)}
        else:
            typer.echo("\n".join(_kernels(name, times, options, device)) + "\n")
            typer.echo("\n".join(_summary(times, device)) + "\n")
    if options.as_json:
        line = {"gpu": asdict(device), "context": options.context} | found
        typer.echo(json.dumps(rounded(line)))


def _device(options: LaunchesOptions) -> Device:
    """With the bandwidth that a read reaches: the user's figure, or a share of the published."""
    if options.gpu is None:
        raise UsageError("the launches of a plan need --gpu")
    device = find_device(options.gpu, options.bandwidth)
    if options.bandwidth is not None:
        return device
    return device.measured(bandwidth=READ_SHARE * device.bandwidth)


def _sources(options: LaunchesOptions) -> dict[Role, str]:
    given = {Role.DRAFT: options.draft, Role.TARGET: options.target}
    sources = {role: source for role, source in given.items() if source is not None}
    if not sources:
        raise UsageError("the launches of a plan need --draft or --target")
    return sources


def _times(
    model: ModelMemory, role: Role, options: LaunchesOptions, device: Device
) -> Iterator[_Times]:
    for sequences in sorted({*_SEQUENCES, options.slots}):
        tick = decode_tick(model.config, model.dtype, sequences, role)
        load, weights = Load(sequences, options.context), model.weights_format
        plain, early = (
            tick_time(tick, load, device, early=early, weights=weights) for early in (False, True)
        )
        yield _Times(sequences, plain, early if device.starts_early else plain)


def _dicts(times: Sequence[_Times], device: Device) -> list[dict[str, Any]]:
    return [
        {"sequences": found.sequences, "early": early} | _dict(tick, device)
        for found in times
        for early, tick in ((False, found.plain), (True, found.early))
        if tick is found.plain or device.starts_early
    ]


def _dict(tick: TickTime, device: Device) -> dict[str, Any]:
    return {
        "seconds": tick.seconds,
        "forward": {
            "seconds": tick.forward_seconds,
            "num_bytes": tick.num_bytes,
            "share": tick.share(device),
            "kernels": [_kernel_dict(kernel) for kernel in tick.forward],
        },
        "control": {
            "seconds": tick.seconds - tick.forward_seconds,
            "kernels": [_kernel_dict(kernel) for kernel in tick.control],
        },
    }


def _kernel_dict(kernel: KernelTime) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "weight": list(kernel.weight),
        "grid": list(kernel.grid),
        "launches": kernel.launches,
        "num_bytes": kernel.num_bytes,
        "seconds": kernel.seconds,
    }


def _head(options: LaunchesOptions, device: Device) -> str:
    origin = "your figure" if options.bandwidth else f"{1e2 * READ_SHARE:.0f} % of the published"
    return (
        "Expected, not measured: what a tick takes where each kernel waits for the one\n"
        "before, and (early) where the next one starts meanwhile: RSD_OVERLAP_KERNELS=1.\n"
        f"{device.name}, {device.multiprocessors} multiprocessors, reads "
        f"{device.bandwidth / 1e12:.2f} TB/s ({origin})\n"
    )


def _kernels(
    name: str, times: Sequence[_Times], options: LaunchesOptions, device: Device
) -> list[str]:
    [shown] = [found for found in times if found.sequences == options.slots]
    number = options.slots
    work = f"{number} sequence{'' if number == 1 else 's'} of {options.context} tokens"
    rows: list[tuple[str, ...]] = []
    for part in ("forward", "control"):
        both = [getattr(tick, part) for tick in (shown.plain, shown.early)]
        rows += [
            (
                _title(plain), str(plain.launches), "x".join(map(str, plain.grid)),
                f"{plain.num_bytes / 1e6:.2f}", _us(plain.seconds), _us(early.seconds),
            )
            for plain, early in zip(*both, strict=True)
        ]  # fmt: skip
        total = sum(plain.launches for plain in both[0])
        nbytes = sum(plain.launches * plain.num_bytes for plain in both[0])
        seconds = [sum(k.launches * k.seconds for k in kernels) for kernels in both]
        rows.append((f"{part}, all", str(total), "", f"{nbytes / 1e6:.2f}", *map(_us, seconds)))
    titles: tuple[str, ...] = ("Kernel", "launches", "programs", "MB each", "us each", "early")
    if not device.starts_early:
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    return [f"{name}: {work}", *table(titles, rows)]


def _title(kernel: KernelTime) -> str:
    name = kernel.name.strip("_").removesuffix("_kernel")
    return " ".join([name, "x".join(map(str, kernel.weight))]).strip()


def _summary(times: Sequence[_Times], device: Device) -> list[str]:
    rows = [
        (str(found.sequences), *(
            cell
            for tick in ((found.plain, found.early) if device.starts_early else (found.plain,))
            for cell in (
                _us(tick.forward_seconds), f"{1e2 * tick.share(device):.0f} %", _us(tick.seconds)
            )
        ))
        for found in times
    ]  # fmt: skip
    titles: tuple[str, ...] = ("Sequences", "us forward", "bandwidth", "us tick")
    if device.starts_early:
        titles += ("early: forward", "bandwidth", "tick")
    return table(titles, rows)


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"
