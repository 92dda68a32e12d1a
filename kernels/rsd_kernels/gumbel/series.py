"""Constants of the noise in fixed point, for twin and kernel; csrc/cpu/draw.h has them too.

With m = 1 + f: 1 - log2(m) = t R(f), t = (1 - f) / 2, R(f) = c0 - f (c1 - f (c2 - ...)). All c are
positive, and so is every partial result: unsigned integers do, and none overflows.
"""

from __future__ import annotations

# Minimax in the relative error, 1.5e-7 at most; scaled by 2**30.
SERIES = (
    0x7FFFFEC3, 0x38A99518, 0x239C5F63, 0x19645BDE, 0x120FDB50, 0x0ADA9E60, 0x046C435E, 0x00DAD0CD,
)  # fmt: skip
LN2 = 0xB17217F8  # ln 2, scaled by 2**32
SHIFT = 6  # added to -log2 E, so that it is positive
OFFSET = 127250827  # SHIFT ln 2 + ln ln 2, scaled by 2**FRACTION
FRACTION = 25  # bits after the point of a logarithm
