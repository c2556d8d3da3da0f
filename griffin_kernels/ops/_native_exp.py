"""exp and expm1 in native code, emitted as vectors, in float32 and in float64.

    exp(z) = 2^k (1 + p),  expm1(z) = 2^k p + (2^k - 1)      k: z / ln 2 to the nearest integer, p = expm1(z - k ln 2)

p is a polynomial that is right to its last bits even where it is small, and so is expm1. ln 2 comes in two parts, of
which the first has so few digits that k times it is exact. Source: the Cephes library, expf.c, for float32 and for both
splits of ln 2; Taylor's terms for float64, of which the first that is left out is below 2e-17 of p.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import math
import struct
from typing import Any

from griffin_kernels.ops._native import DOUBLE, INT32, INT64, Lanes

_FLOAT_TERMS = (0.50000001201, 0.16666665459, 0.041665795894, 0.0083334519073, 0.0013981999507, 0.00019875691500)
_DOUBLE_TERMS = tuple(1 / math.factorial(power) for power in range(2, 14))

_LN2 = {False: (0.693359375, -2.12194440e-4), True: (6.93145751953125e-1, 1.42860682030941723212e-6)}
"""ln 2 in two parts, by whether the accumulator is float64."""

_ENDS = {False: 150.0, True: 1000.0}
"""Beyond it an exponential is 0 or infinite, and 2^k is still a product of two powers that are not."""


def exponentials(v: Lanes, z: Any) -> tuple[Any, Any]:
    """exp(z) and exp(z) - 1; NaN stays NaN."""
    b, double = v.builder, v.wide is DOUBLE
    integer, digits, bias = (INT64, 52, 1023) if double else (INT32, 23, 127)
    round_to = 1.5 * 2.0**digits  # added to what is small it leaves the nearest integer in the lowest bits
    offset = struct.unpack("<q" if double else "<i", struct.pack("<d" if double else "<f", round_to))[0]
    z = v.at_most(v.at_least(z, -_ENDS[double]), _ENDS[double])
    shifted = v.multiply_add(z, v.constant(1 / math.log(2)), v.constant(round_to))
    whole, rest = v.subtract(shifted, v.constant(round_to)), z
    for part in _LN2[double]:
        rest = v.multiply_add(whole, v.constant(-part), rest)
    k = b.sub(b.bitcast(shifted, v.of(integer)), v.constant(offset, integer))
    half = b.ashr(k, v.constant(1, integer))

    def power_of_two(exponent: Any) -> Any:
        bits = b.shl(b.add(exponent, v.constant(bias, integer)), v.constant(digits, integer))
        return b.bitcast(bits, v.of(v.wide))

    first, second = power_of_two(half), power_of_two(b.sub(k, half))
    terms = _DOUBLE_TERMS if double else _FLOAT_TERMS
    value = v.constant(terms[-1])
    for term in terms[-2::-1]:
        value = v.multiply_add(value, rest, v.constant(term))
    p = v.multiply_add(v.multiply(rest, rest), value, rest)
    power = v.multiply(v.add(p, v.constant(1.0)), first, second)
    scale = v.multiply(first, second)
    less = v.multiply_add(scale, p, v.subtract(scale, v.constant(1.0)))
    beyond = b.fcmp_ordered(">", z, v.constant(1.0))  # where 2^k may be infinite
    return power, b.select(beyond, v.subtract(power, v.constant(1.0)), less)
