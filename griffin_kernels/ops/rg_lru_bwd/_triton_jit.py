"""Device functions of rg_lru_bwd that its Triton kernels share: the equations of op.py, element by element.

Special functions per element, after the gates: one, since m and its derivative come from the same 1 / sqrt(v).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops.rg_lru.op import MAX_SQRT_GRADIENT

LARGEST_SLOPE = tl.constexpr(MAX_SQRT_GRADIENT)
TINY = tl.constexpr(1e-37)
LOG2_E = tl.constexpr(1.4426950408889634)
GELU_SCALE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
GELU_CUBIC = tl.constexpr(0.044715)


@triton.jit
def multiplier(v):
    """(m, dm/dv): sqrt(v) and its clipped derivative."""
    inverse = tl.rsqrt(tl.maximum(v, TINY))
    return v * inverse, tl.minimum(0.5 * inverse, LARGEST_SLOPE)


@triton.jit
def gradients(g, passed, x, before, i, r, a, m, slope, rate):
    """(part of dx that does not go through the gates, dz_i, dz_r, r dlog_a), float32.

    g: gradient that reaches h_t; passed: a g, what reaches h_{t-1}; before: h_{t-1}; rate: log a = rate r. At a reset
    m is 1, and passed and before are 0.
    """
    direct = g * m * i
    dz_i = direct * x * (1.0 - i)
    # a da - 2 a^2 (g i x) slope, da = g h_{t-1}
    r_dlog_a = r * (passed * (before - 2.0 * a * slope * (i * x)))
    return direct, dz_i, rate * (1.0 - r) * r_dlog_a, r_dlog_a


@triton.jit
def gelu_and_slope(y):
    """gelu in its tanh form and its derivative, float32: y q with q = (1 + tanh(s)) / 2 = sigmoid(2 s)."""
    square = y * y
    s = y * (square * (GELU_CUBIC * GELU_SCALE) + GELU_SCALE)
    q = 1.0 / (1.0 + tl.exp2(tl.minimum(s * (-2.0 * LOG2_E), 126.0)))
    ds = square * (3.0 * GELU_CUBIC * GELU_SCALE) + GELU_SCALE
    gelu = y * q
    return gelu, q + 2.0 * gelu * (1.0 - q) * ds


@triton.jit
def load_flags(pointer, left, STEP, OTHER: tl.constexpr, ROWS: tl.constexpr):
    """ROWS scalars, one per step, as a tuple, OTHER from ``left`` on; an empty one where ``pointer`` is None."""
    flags = ()
    if pointer is not None:
        for u in tl.static_range(ROWS):
            flags += (tl.load(pointer + u * STEP, mask=u < left, other=OTHER),)
    return flags
