"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse

import torch

NO_GPU = "there is no CUDA device here; --dry-run runs the same code on a CPU"


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m bench.NAME`, which prints `description` as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m bench.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse calls it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def share(text: str) -> float:
    """A number from 0 to 1, as argparse calls it."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {value}")
    return value


def default_device() -> torch.device:
    """The current GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
