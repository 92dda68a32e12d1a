"""The least time of one forward pass, by the roofline model (Williams et al., 2009).

A pass must read every weight and every key and value from memory once, and do every
multiplication; at best the two overlap, so the longer one counts. Activations, launches, sampling
and the loop are free here: no engine can be quicker on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.shape import ModelShape


@dataclass(frozen=True)
class PassCost:
    """What a pass asks of a device."""

    num_bytes: float
    flops: float

    def seconds(self, device: Device) -> float:
        """The least time, bytes and products overlapped."""
        return max(self.num_bytes / device.bandwidth, self.flops / device.flops)


def pass_cost(
    shape: ModelShape, *, seqs: float, rows: float, context: float, places: float = 1
) -> PassCost:
    """The cost of a pass in which each of `seqs` sequences has `rows` new tokens.

    Args:
        shape: of the model.
        seqs: sequences in the pass.
        rows: new tokens of each sequence; may be a mean.
        context: tokens that a row attends to, itself included; their K and V are read once per
            sequence.
        places: rows of each sequence on which the head is computed: the last, and guesses.
    """
    num_bytes = shape.read_bytes + seqs * context * shape.kv_bytes_per_token
    products = 2 * seqs * (rows * shape.body_parameters + places * shape.head_parameters)
    attention = 4 * seqs * rows * context * shape.attention_width  # q·k and p·v
    return PassCost(num_bytes, products + attention)
