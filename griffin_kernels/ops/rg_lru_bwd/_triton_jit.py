"""Device functions of rg_lru_bwd that its Triton kernels share: the equations of op.py, element by element.

Special functions per element, after the gates: one, since m and its derivative come from the same 1 / sqrt(v).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops.rg_lru.op import MAX_SQRT_GRADIENT

LARGEST_SLOPE = tl.constexpr(MAX_SQRT_GRADIENT)
TINY = tl.constexpr(1e-37)


@triton.jit
def multiplier(v):
    """(m, dm/dv): sqrt(v) and its clipped derivative."""
    inverse = tl.rsqrt(tl.maximum(v, TINY))
    return v * inverse, tl.minimum(0.5 * inverse, LARGEST_SLOPE)


@triton.jit
def gradients(g, x, before, i, r, a, m, slope, rate):
    """(part of dx that does not go through the gates, dz_i, dz_r, r dlog_a), float32.

    g: gradient that reaches h_t; before: h_{t-1}; rate: log a = rate r; a = 0 and m = 1 at a reset.
    """
    direct = g * m * i
    dz_i = direct * x * (1.0 - i)
    # a da - 2 a^2 (g i x) slope, da = g h_{t-1}
    r_dlog_a = r * (a * (g * (before - 2.0 * a * slope * (i * x))))
    return direct, dz_i, rate * (1.0 - r) * r_dlog_a, r_dlog_a
