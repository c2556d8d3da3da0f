"""Device functions of rg_lru_bwd that its Triton kernels share: what they visit, the equations of op.py.

Special functions per element, after the gates: one, since m and its derivative come from the same 1 / sqrt(v).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.tensors import State, at, dense, later, store_state
from griffin_kernels.ops.rg_lru.op import DECAY, MAX_SQRT_GRADIENT

SLOPE_OF_RATE = tl.constexpr(-DECAY)
LARGEST_SLOPE = tl.constexpr(MAX_SQRT_GRADIENT)
TINY = tl.constexpr(1e-37)


class GradientSteps(NamedTuple):
    """What the scan reads and writes step by step, or None: ``Rows``, from the last step on, of dy, x, y, of the branch
    whose gelu the states were multiplied by, and of positions [B,T]; dx and dbranch [B,T,D] and z [B*T,H,2,n], products
    in, gradients out, contiguous. With a branch dy is the product's gradient.
    """

    dy: Any
    x: Any
    y: Any
    branch: Any
    positions: Any
    dx: Any
    dbranch: Any
    z: Any


class Ends(NamedTuple):
    """``State`` or None: dh_last and h0 [N,D]; dh0 [N,D] contiguous."""

    dh_last: Any
    h0: Any
    dh0: Any


class Sums(NamedTuple):
    """dz_i, dz_r and r dlog_a, float32: of some steps, or summed over steps."""

    z_i: Any
    z_r: Any
    log_a: Any


@bundling
def steps_at(steps, batch, time, T, blocks_before, D: tl.constexpr):
    """The steps of a batch entry from ``time`` on, backwards, all of them ``Rows``; of z those of the input gate.

    blocks_before: channels of the gate blocks before a channel's own, any shape that broadcasts with channels.
    """
    row = batch * T + time
    return GradientSteps(
        *[at(rows, batch, time, -1) for rows in steps[:5]],
        *[dense(tensor, row, D, -1) for tensor in steps[5:7]],
        z=dense(steps.z + blocks_before, row, 2 * D, -1),
    )


@bundling
def steps_later(steps, count):
    """The steps from ``count`` steps later on, as visited."""
    return GradientSteps(*[later(rows, count) for rows in steps])


@bundling
def added(sums, more):
    """Both sums together."""
    return Sums(sums.z_i + more.z_i, sums.z_r + more.z_r, sums.log_a + more.log_a)


@triton.jit
def store_sums(partial, row, sums, channels, D: tl.constexpr):
    """Row ``row`` of partial [rows,3,D], for rg_lru_bwd_sums."""
    for k in tl.static_range(3):
        store_state(State(partial + k * D, 3 * D, 1), row, sums[k], channels)


@triton.jit
def multiplier(v):
    """(m, dm/dv): sqrt(v) and its clipped derivative."""
    inverse = tl.rsqrt(tl.maximum(v, TINY))
    return v * inverse, tl.minimum(0.5 * inverse, LARGEST_SLOPE)


@bundling
def gradients(g, passed, x, before, i, r, a, m, slope, rate):
    """(part of dx that does not go through the gates, sums of the step alone), float32.

    g: gradient that reaches h_t; passed: a g, what reaches h_{t-1}; before: h_{t-1}; rate: log a = rate r. At a reset
    m is 1, and passed and before are 0.
    """
    direct = g * m * i
    dz_i = direct * x * (1.0 - i)
    # a da - 2 a^2 (g i x) slope, da = g h_{t-1}
    r_dlog_a = r * (passed * (before - 2.0 * a * slope * (i * x)))
    return direct, Sums(dz_i, rate * (1.0 - r) * r_dlog_a, r_dlog_a)


@triton.jit(do_not_specialize=["rows"])
def rg_lru_bwd_sums(
    partial,
    a_param,
    da_param,
    dinput_gate_bias,
    drecurrence_gate_bias,
    rows,
    D: tl.constexpr,
    A_PARAM_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """partial [rows, 3, D]: sums of dz_i, dz_r, r dlog_a -> the gradients [D]. Grid: 3 * blocks of D."""
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    which = tl.program_id(0) // BLOCKS
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    at = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
    for begin in range(0, rows, ROWS):
        row = (begin + at).to(tl.int64) * 3 + which
        mask = (begin + at < rows)[:, None] & inside[None, :]
        total += tl.load(partial + (row * D)[:, None] + columns[None, :], mask=mask, other=0.0)
    value = tl.sum(total, axis=0)
    if which == 0:
        tl.store(dinput_gate_bias + columns, value.to(dinput_gate_bias.dtype.element_ty), mask=inside)
    elif which == 1:
        tl.store(drecurrence_gate_bias + columns, value.to(drecurrence_gate_bias.dtype.element_ty), mask=inside)
    else:
        slope = tl.sigmoid(tl.load(a_param + columns * A_PARAM_CHANNEL, mask=inside, other=0.0).to(tl.float32))
        tl.store(da_param + columns, (slope * value * SLOPE_OF_RATE).to(da_param.dtype.element_ty), mask=inside)
