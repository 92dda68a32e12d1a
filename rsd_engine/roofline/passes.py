"""The least time of one forward pass: its weights and K/V read once, or its products computed.

No engine can be quicker on the device: a pass must bring every weight and every key and value from
memory once, and do every multiplication. Activations, launches, sampling and the loop are free
here. The two overlap at best, so the larger one counts (the roofline model: Williams et al., 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.shape import ModelShape


@dataclass(frozen=True)
class PassCost:
    """What passes ask of a device."""

    num_bytes: float
    flops: float

    def __add__(self, other: PassCost) -> PassCost:
        return PassCost(self.num_bytes + other.num_bytes, self.flops + other.flops)

    def __mul__(self, times: float) -> PassCost:
        return PassCost(self.num_bytes * times, self.flops * times)

    def seconds(self, device: Device) -> float:
        """The least time, bytes and products overlapped."""
        return max(self.num_bytes / device.bandwidth, self.flops / device.flops)


def pass_cost(shape: ModelShape, *, seqs: float, rows: float, context: float) -> PassCost:
    """One pass in which every one of `seqs` sequences brings `rows` new tokens.

    Args:
        shape: of the model.
        seqs: sequences in the pass; the head is computed on the last row of each.
        rows: new tokens of each sequence; may be a mean.
        context: tokens of each sequence that a row attends to, itself included; their K and V are
            read once a sequence.
    """
    num_bytes = shape.read_bytes + seqs * context * shape.kv_bytes_per_token
    products = 2 * seqs * (rows * shape.body_parameters + shape.head_parameters)
    attention = 4 * seqs * rows * context * shape.attention_width  # q·k and p·v
    return PassCost(num_bytes, products + attention)


def pass_seconds(
    shape: ModelShape, device: Device, *, seqs: float, rows: float, context: float
) -> float:
    """The least time of the pass of `pass_cost`."""
    return pass_cost(shape, seqs=seqs, rows=rows, context=context).seconds(device)
