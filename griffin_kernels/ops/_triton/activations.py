"""Activations of Triton kernels by their code in ``_activation.CODES``, in float32 or float64; see there what they are.

A sigmoid that has run out of range is 0 or 1 and meets finite numbers only: none of these overflows for a finite z.
"""

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops import _activation
from griffin_kernels.ops._triton.elementwise import GELU_CUBIC, GELU_SCALE, LOG2_E, exp2, reciprocal

SILU = tl.constexpr(_activation.CODES["silu"])
GELU = tl.constexpr(_activation.CODES["gelu"])
FLAT = tl.constexpr(16.0)
"""From here on gelu's slope is 1, on the other side 0; the square of what is much larger would overflow."""


@triton.jit
def sigmoid(z):
    """1 / (1 + e^-z)."""
    if z.dtype == tl.float64:
        value = 1.0 / (1.0 + tl.exp(-z))
    else:
        value = reciprocal(1.0 + exp2(z * (-LOG2_E)))
    return value


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    """The activation of z; z itself without one."""
    value = z
    if ACTIVATION == SILU:
        value = z * sigmoid(z)
    if ACTIVATION == GELU:
        value = z * sigmoid(z * (2.0 * GELU_SCALE + 2.0 * GELU_CUBIC * GELU_SCALE * z * z))
    return value


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The derivative of an activation at z."""
    argument = z
    steepness = z
    if ACTIVATION == GELU:
        z = tl.where(z > FLAT, FLAT, tl.where(z < -FLAT, -FLAT, z))  # NaN stays
        square = z * z
        argument = z * (2.0 * GELU_SCALE + 2.0 * GELU_CUBIC * GELU_SCALE * square)
        steepness = z * (2.0 * GELU_SCALE + 6.0 * GELU_CUBIC * GELU_SCALE * square)
    share = sigmoid(argument)
    return share + share * (1.0 - share) * steepness
