"""The matrix of a linear layer that GPTQ or AWQ packed: its expansion, and its few bits as such."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import GroupedSource, StoredTensor
from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind

PARTS = ("qweight", "qzeros", "scales", "g_idx")  # of a linear layer; the last may be absent
_FLOATS, _INTEGERS = (torch.float32, torch.float16, torch.bfloat16), (torch.int32, torch.int64)


@dataclass(frozen=True)
class Packing:
    """What one format has of its own.

    Attributes:
        name: of the format, for messages.
        bits: of a value and of a zero.
        shape_of: inputs and outputs, from the shape of qweight.
        unpack: from qweight and qzeros to values [K, N] and zeros [groups, N], both uint8.
        check_zeros: raises ValueError, which ends a sentence about qzeros, for zeros [groups, N] of
            another convention.
    """

    name: str
    bits: int
    shape_of: Callable[[tuple[int, ...]], tuple[int, int]]
    unpack: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    check_zeros: Callable[[Tensor], None] = lambda zeros: None


@dataclass(frozen=True)
class PackedMatrix:
    """W = scale * (q - zero) of K inputs and N outputs, stored with its inputs as rows.

    Raises:
        ValueError: a part is missing, of another shape or of another dtype, or the group size does
            not divide the inputs.
    """

    stem: str  # name of the layer
    parts: dict[str, StoredTensor]  # those of `PARTS` that there are
    packing: Packing
    group_size: int  # -1: all inputs

    def __post_init__(self) -> None:
        weight = self.parts["qweight"]
        if len(weight.shape) != 2 or min(weight.shape) < 1:
            raise ValueError(
                f"{self._named('qweight')} has shape {list(weight.shape)}; it is no matrix"
            )
        inputs, outputs = self._inputs_outputs
        if inputs % self._size:
            raise ValueError(
                f"{self._named('qweight')} has {inputs} inputs; group_size={self.group_size} of "
                "quantization_config must divide them"
            )
        self._check_parts(
            {
                "qweight": weight.shape,
                "qzeros": (self._groups, outputs * self.packing.bits // 32),
                "scales": (self._groups, outputs),
                "g_idx": (inputs,),
            }
        )

    @property
    def _inputs_outputs(self) -> tuple[int, int]:
        return self.packing.shape_of(self.parts["qweight"].shape)

    @property
    def _size(self) -> int:
        inputs, _ = self._inputs_outputs
        return inputs if self.group_size == -1 else self.group_size

    @property
    def _groups(self) -> int:
        return self._inputs_outputs[0] // self._size

    def stored(self) -> StoredTensor:
        """The layer's weight [N, K]."""
        inputs, outputs = self._inputs_outputs
        nbytes = sum(part.nbytes for part in self.parts.values())
        return StoredTensor(
            (outputs, inputs), torch.float32, self.parts["qweight"].file, nbytes, self._expand,
            self.packing.name, grouped=self._grouped_source(),
        )  # fmt: skip

    def _grouped_source(self) -> GroupedSource | None:
        """None where a group is too small for products of its bits."""
        inputs, outputs = self._inputs_outputs
        if not GroupedSource.takes(inputs, self._size):
            return None
        kind = ValueKind.INT4 if self.packing.bits == 4 else ValueKind.INT8
        scale_dtype = self.parts["scales"].dtype
        return GroupedSource(kind, (outputs, inputs), self._size, 1, scale_dtype, True, self._group)

    def _expand(self) -> Tensor:
        """[N, K] float32."""
        values, zeros, scales, group = self._unpacked(torch.device("cpu"))
        if group is None:
            group = torch.arange(len(values)) // self._size
        differences = values.short() - zeros.short()[group]
        return (differences * scales.float()[group]).t().contiguous()

    def _group(self, device: torch.device) -> GroupedMatrix:
        values, zeros, scales, group = self._unpacked(device)
        order = None if group is None else self._order(group)
        if order is not None:
            values = values[order]
        values, zeros = values.t().contiguous(), zeros.t()
        if self.packing.bits == 4:
            kind, middle = ValueKind.INT4, 8
            found = zeros.to(torch.int8).contiguous()
        else:  # signed, by 128 less
            kind, middle = ValueKind.INT8, 0
            values, found = (
                x.bitwise_xor(128).contiguous().view(torch.int8) for x in (values, zeros)
            )
        return GroupedMatrix.pack(
            kind, values, scales.t().contiguous(), None if bool((found == middle).all()) else found,
            group_size=self._size, order=None if order is None else order.int(),
        )  # fmt: skip

    def _unpacked(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Values [K, N] and zeros [groups, N] uint8, scales [groups, N], and the group of each
        input [K] int64; None: those of a group follow one another."""
        parts = {name: part.read().to(device) for name, part in self.parts.items()}
        values, zeros = self.packing.unpack(parts["qweight"], parts["qzeros"])
        try:
            self.packing.check_zeros(zeros)
        except ValueError as error:
            raise ValueError(f"{self._named('qzeros')} {error}") from error
        group = parts.get("g_idx")
        if group is None or not group.any():  # all zeros stand for the plain order
            return values, zeros, parts["scales"], None
        if not bool(((group >= 0) & (group < self._groups)).all()):
            raise ValueError(
                f"{self._named('g_idx')} names groups outside 0 to {self._groups - 1}; the "
                "checkpoint is damaged"
            )
        return values, zeros, parts["scales"], group.long()

    def _order(self, group: Tensor) -> Tensor | None:
        """[K] int64: the inputs, those of a group one after another; None: they are in order."""
        counts = torch.bincount(group, minlength=self._groups)
        if bool((counts != self._size).any()):
            uneven = int((counts != self._size).nonzero()[0])
            raise ValueError(
                f"{self._named('g_idx')} puts {int(counts[uneven])} inputs into group {uneven}; "
                f"on a GPU every group must have group_size={self._size}: use another checkpoint, "
                "or a CPU"
            )
        order = torch.argsort(group, stable=True)
        in_order = bool((order[1:] > order[:-1]).all())
        return None if in_order else order

    def _check_parts(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for part in ("qzeros", "scales"):
            if part not in self.parts:
                raise ValueError(f"{self._named('qweight')} has no {part} beside it")
        for part, tensor in self.parts.items():
            kinds = _FLOATS if part == "scales" else _INTEGERS
            fits = tensor.shape == shapes[part] and min(tensor.shape, default=0) > 0
            if not fits or tensor.dtype not in kinds:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(
                    f"{self._named(part)} is {kind} of shape {list(tensor.shape)}; with the bits "
                    "and group_size of quantization_config it must have shape "
                    f"{list(shapes[part])}, int32 except for scales"
                )

    def _named(self, part: str) -> str:
        """A part in a message: "GPTQ tensor .. in .."."""
        file = self.parts.get(part, self.parts["qweight"]).file
        return f"{self.packing.name} tensor {self.stem}.{part} in {file}"
