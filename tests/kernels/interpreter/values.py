"""Makes the interpreter as unkind as a device where the two give other values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from triton.runtime import interpreter


def _anything(ptrs: Any) -> Any:
    """NaN of any floating dtype, or a large number."""
    kind = ptrs.get_element_ty()
    dtype = interpreter._get_np_dtype(kind)
    values = np.full((*ptrs.data.shape, dtype.itemsize), 0xFF if kind.is_floating() else 0x5A, "u1")
    return interpreter.TensorHandle(values.view(dtype).reshape(ptrs.data.shape), kind)


@contextmanager
def as_on_a_device() -> Iterator[None]:
    """What a masked load leaves where nothing is loaded, NaN, and products in fp32.

    - A masked load of a block without `other` leaves anything there: here NaN, or a large number.
      The interpreter leaves zero. (Of a scalar it does not know `other=0` from none.)
    - `tl.maximum` and `tl.minimum` drop NaN where the other number is one (PTX: max.f32). The
      interpreter keeps it, though it drops NaN in `tl.max` and `tl.min`.
    - A product in fp32 is rounded to TF32 unless it says `input_precision="ieee"`. The interpreter
      always is exact: here the others are refused.
    """
    builder = interpreter.InterpreterBuilder
    names = ("create_masked_load", "create_maxnumf", "create_minnumf", "create_dot")
    plain = {name: getattr(builder, name) for name in names}

    def load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **options: Any) -> Any:
        if other is None and ptrs.data.size > 1:
            other = _anything(ptrs)
        return plain["create_masked_load"](self, ptrs, mask, other, *rest, **options)

    def maximum(self: Any, one: Any, other: Any) -> Any:
        return self.binary_op(one, other, np.fmax)

    def minimum(self: Any, one: Any, other: Any) -> Any:
        return self.binary_op(one, other, np.fmin)

    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        exact = precision == interpreter._ir.INPUT_PRECISION.IEEE
        assert exact or a.data.dtype != np.float32, "this product would be rounded to TF32"
        return plain["create_dot"](self, a, b, d, precision, *rest)

    try:
        for name, method in zip(names, (load, maximum, minimum, dot), strict=True):
            setattr(builder, name, method)
        yield
    finally:
        for name, method in plain.items():
            setattr(builder, name, method)
