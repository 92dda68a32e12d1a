"""A matrix in few bits, as products on a GPU read it: GPTQ, AWQ, FP8 and int8 in one form.

W[n, order[k]] = scale[n // scale_rows, g] * (q[n, k] - zero[n, g]), g = k // group_size

The values of an output lie one after another, as in a plain matrix. INT4 and FP8 are packed so that
a product reads whole lines of memory and unpacks without a shuffle: a line of 32 words holds 256 or
128 inputs, and the fields of word j are inputs 32 * i + j of them: those of even i in its low half,
those of odd i in its high half, so that two of them become 16-bit floats at once. Scales and zeros
of a group lie one after another. Nothing is rounded again: values, scales and zeros are those of
the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

MIN_GROUP = 32  # inputs that one field of a line's words holds
_WORDS = 32  # of a line


class ValueKind(Enum):
    """What a value q is."""

    INT4 = "int4"  # 0 to 15; without a zero of its own its zero is 8
    INT8 = "int8"  # -128 to 127
    FP8 = "fp8"  # e4m3, as its bits

    @property
    def bits(self) -> int:
        return 4 if self is ValueKind.INT4 else 8

    @property
    def shifts(self) -> tuple[int, ...]:
        """Of the fields of a word; none where values are not packed in words."""
        return _SHIFTS.get(self, ())


_SHIFTS = {ValueKind.INT4: (0, 16, 4, 20, 8, 24, 12, 28), ValueKind.FP8: (0, 16, 8, 24)}


@dataclass(frozen=True)
class GroupedMatrix:
    """See the module's text.

    Attributes:
        kind: of the values.
        values: [N, words of a row] int32 of INT4 and FP8, [N, K] int8 of INT8.
        scales: [ceil(N / scale_rows), ceil(K / group_size)] of a float dtype, stored by columns.
        zeros: [N, ceil(K / group_size)] int8, stored by columns; None: 8 for INT4, else 0.
        num_inputs: K.
        group_size: K, or a multiple of `MIN_GROUP`.
        scale_rows: outputs that share a scale.
        order: [K] int32: the input that column k of `values` multiplies; None: k.
    """

    kind: ValueKind
    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    num_inputs: int
    group_size: int
    scale_rows: int = 1
    order: Tensor | None = None

    @classmethod
    def pack(
        cls,
        kind: ValueKind,
        values: Tensor,  # [N, K]: INT4 uint8 from 0 to 15, INT8 int8, FP8 float8_e4m3fn
        scales: Tensor,
        zeros: Tensor | None = None,
        *,
        group_size: int,
        scale_rows: int = 1,
        order: Tensor | None = None,
    ) -> GroupedMatrix:
        """The matrix of plain values; the others as in the attributes.

        Raises:
            ValueError: the group size is not supported, or a scale or zero is missing.
        """
        num_outputs, num_inputs = values.shape
        if group_size != num_inputs and (group_size % MIN_GROUP or num_inputs % group_size):
            raise ValueError(
                f"group_size={group_size} must be a multiple of {MIN_GROUP} that divides "
                f"{num_inputs} inputs, or all of them"
            )
        groups = num_inputs // group_size
        shapes = {"scales": (-(-num_outputs // scale_rows), groups), "zeros": (num_outputs, groups)}
        for name, tensor in (("scales", scales), ("zeros", zeros)):
            if tensor is not None and tuple(tensor.shape) != shapes[name]:
                raise ValueError(
                    f"{name} have shape {list(tensor.shape)}; they must have {list(shapes[name])}"
                )
        stored = values.contiguous()
        if kind is ValueKind.FP8:
            stored = stored.view(torch.uint8)
        if kind.shifts:
            stored = _packed(stored, kind.shifts)
        zeros = None if zeros is None else _by_columns(zeros)
        return cls(
            kind, stored, _by_columns(scales), zeros, num_inputs, group_size, scale_rows, order
        )

    @classmethod
    def merge(cls, parts: Sequence[GroupedMatrix]) -> GroupedMatrix:
        """The outputs of the parts, one after another.

        Raises:
            ValueError: the parts differ in kind, group size or order.
        """
        first = parts[0]
        if any(not first.fits(part) for part in parts):
            raise ValueError(
                "matrices of one product must be quantised alike: kind, group size and order"
            )
        # Rows of scales that are cut off inside a part could not be shared with the next.
        shared = all(p.scale_rows == first.scale_rows for p in parts) and not any(
            part.num_outputs % part.scale_rows for part in parts[:-1]
        )
        parts = parts if shared else [part.with_scale_of_each_output() for part in parts]
        zeros = None
        if any(part.zeros is not None for part in parts):
            zeros = _by_columns(torch.cat([part.all_zeros() for part in parts]))
        return replace(
            parts[0],
            values=torch.cat([part.values for part in parts]),
            scales=_by_columns(torch.cat([part.scales for part in parts])),
            zeros=zeros,
        )

    def fits(self, other: GroupedMatrix) -> bool:
        """True if both can be parts of one product."""
        same = (self.kind, self.num_inputs, self.group_size, self.scales.dtype) == (
            other.kind, other.num_inputs, other.group_size, other.scales.dtype,
        )  # fmt: skip
        if self.order is None or other.order is None:
            return same and self.order is other.order
        return same and torch.equal(self.order, other.order)

    def with_scale_of_each_output(self) -> GroupedMatrix:
        """The same matrix with `scale_rows` of 1."""
        scales = self.scales.repeat_interleave(self.scale_rows, 0)[: self.num_outputs]
        return replace(self, scales=_by_columns(scales), scale_rows=1)

    def all_zeros(self) -> Tensor:
        """[N, groups] int8, where there are none too."""
        if self.zeros is not None:
            return self.zeros
        shape = (self.num_outputs, self.num_inputs // self.group_size)
        zero = 8 if self.kind is ValueKind.INT4 else 0
        return torch.full(shape, zero, dtype=torch.int8, device=self.values.device)

    @property
    def num_outputs(self) -> int:
        return self.values.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_outputs, self.num_inputs

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        held = (self.values, self.scales, self.zeros, self.order)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def select(self, outputs: Tensor) -> GroupedMatrix:
        """The outputs of these numbers [k] int64, copied."""
        each = self.with_scale_of_each_output()
        return replace(
            each,
            values=each.values[outputs],
            scales=_by_columns(each.scales[outputs]),
            zeros=None if each.zeros is None else _by_columns(each.zeros[outputs]),
        )

    def to(self, device: torch.device) -> GroupedMatrix:
        """The same matrix on another device."""
        moved = {
            name: tensor.to(device)
            for name in ("values", "scales", "zeros", "order")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def expand(self) -> Tensor:
        """[N, K] float32: W, its inputs in the order of x."""
        found = self.values
        if self.kind.shifts:
            found = _unpacked(found, self.kind, self.num_inputs)
        if self.kind is ValueKind.FP8:
            found = found.to(torch.uint8).view(torch.float8_e4m3fn)
        groups = found.float().view(self.num_outputs, -1, self.group_size)
        scales = self.with_scale_of_each_output().scales.float()
        scaled = (groups - self.all_zeros().float()[..., None]) * scales[..., None]
        plain = scaled.view(self.num_outputs, self.num_inputs)
        if self.order is None:
            return plain
        return torch.empty_like(plain).index_copy_(1, self.order.long(), plain)


def _by_columns(matrix: Tensor) -> Tensor:
    """The same matrix, each of whose columns lies in one piece."""
    return matrix.t().contiguous().t()


def _packed(values: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """[N, K] uint8 -> [N, words] int32; inputs that a last line lacks are 0."""
    num_outputs, num_inputs = values.shape
    padded = torch.nn.functional.pad(values, (0, -num_inputs % (len(shifts) * _WORDS)))
    fields = padded.view(num_outputs, -1, len(shifts), _WORDS)
    words = torch.zeros_like(fields[:, :, 0], dtype=torch.int32)
    for index, shift in enumerate(shifts):
        words |= fields[:, :, index].to(torch.int32) << shift
    return words.flatten(1)


def _unpacked(words: Tensor, kind: ValueKind, num_inputs: int) -> Tensor:
    """The inverse of `_packed`."""
    lines = words.view(len(words), -1, 1, _WORDS)
    shifts = torch.tensor(kind.shifts, dtype=torch.int32, device=words.device).view(-1, 1)
    return (lines >> shifts & (1 << kind.bits) - 1).flatten(1)[:, :num_inputs]
