"""The training loop: it can be resumed, ends by time or steps, and decays the rate at the end.

The rate is constant up to the last part of the run, so a run can be cut short or extended; before
the decay an average of the weights is a usable model at any time.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.demo_family.data import Batch

WARMUP_STEPS = 100
DECAY_SHARE = 0.3  # of the run, at the end
AVERAGE = 0.998
SAVE_SECONDS = 120.0

LossFunction = Callable[[Any, Batch], torch.Tensor]
Pools = Callable[[int, random.Random], Iterable[tuple[int, list[Batch]]]]


@dataclass
class TrainingOptions:
    """How long to train, at which rate, and where to keep the checkpoint."""

    checkpoint: Path
    minutes: float
    learning_rate: float
    seed: int
    steps: int | None = None  # in place of the minutes
    device: str = "cpu"
    compile: bool = True


class Trainer:
    """A model, its optimizers and the state that a resumed run needs."""

    def __init__(self, model: nn.Module, options: TrainingOptions) -> None:
        self.options = options
        self.model = model.to(options.device)
        self.average = copy.deepcopy(self.model)
        self.optimizers = _optimizers(self.model)
        self.step = self.pool = 0
        self.elapsed = 0.0
        if options.checkpoint.is_file():
            self._load()

    def progress(self) -> float:
        """The share of the run that is over."""
        if self.options.steps is not None:
            return self.step / self.options.steps
        return self.elapsed / (self.options.minutes * 60)

    def rate(self) -> float:
        """The learning rate: it warms up, stays, and decays linearly at the end of the run."""
        left = 1.0 - self.progress()
        decay = min(1.0, max(left, 0.0) / DECAY_SHARE)
        warmup = min(1.0, (self.step + 1) / WARMUP_STEPS)
        return self.options.learning_rate * warmup * max(decay, 0.01)

    def run(self, loss_function: LossFunction, pools: Pools) -> None:
        """Trains until the run is over."""
        options, compute = self.options, loss_function
        if options.compile:
            compute = torch.compile(loss_function, dynamic=True)
        rng = random.Random(options.seed + self.step)
        saved, shown, losses = time.monotonic(), self.step, []
        for pool, batches in pools(self.pool, rng):
            self.pool = pool
            for batch in batches:
                began = time.monotonic()
                losses.append(self._update(compute(self.model, _to(batch, options.device))))
                self.elapsed += time.monotonic() - began
                if self.step - shown >= 100:
                    print(
                        f"step {self.step} minutes {self.elapsed / 60:.1f} "
                        f"loss {sum(losses) / len(losses):.4f} rate {self.rate():.5f}",
                        flush=True,
                    )
                    shown, losses = self.step, []
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if self.progress() >= 1.0:
                    self.save()
                    return

    def _update(self, loss: torch.Tensor) -> float:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        weight = 1 - min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), weight
            )
        return float(loss.detach())

    def save(self) -> None:
        """Writes the checkpoint; it replaces the last one only when it is complete."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "pool": self.pool + 1,
            "elapsed": self.elapsed,
        }
        path = self.options.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def _load(self) -> None:
        state = torch.load(self.options.checkpoint, map_location=self.options.device)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.pool, self.elapsed = state["step"], state["pool"], state["elapsed"]


def _optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, norms and heads."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def _to(batch: Batch, device: str) -> Batch:
    if device == "cpu":
        return batch
    return Batch(*(getattr(batch, name).to(device) for name in batch.__dataclass_fields__))
