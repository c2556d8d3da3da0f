"""Gates and backward scan of one tile in the matrix units' registers; the layout is that of rg_lru/_triton_tiles.py.

A tile is [channels, steps], steps in backward order: step 0 is the sequence's last. Strides are signed accordingly.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.elementwise import LN_2
from griffin_kernels.ops._triton.strides import reach
from griffin_kernels.ops.rg_lru._triton_jit import argument, scaled_gates
from griffin_kernels.ops.rg_lru._triton_tiles import RUNS, apply, four, marked, stack, unstack, unstack_cuts
from griffin_kernels.ops.rg_lru_bwd._triton_jit import gradients, multiplier


@triton.jit
def offsets(channels, steps, STEP, CHANNEL: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr):
    """Offsets [channels, steps] of a tile in elements, 64-bit only where 32 are too few. STEP may be negative."""
    if (BLOCK_T + 1) * reach(STEP) + 2 * D * CHANNEL >= 2**31:
        steps = steps.to(tl.int64)
        channels = channels.to(tl.int64)
    return channels[:, None] * CHANNEL + steps[None, :] * STEP


@triton.jit
def load_tile(x, channels, inside, steps, left, STEP, CHANNEL: tl.constexpr, D: tl.constexpr,
              MASKED: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """[channels, block_t] of rows, x at step 0; 0 where a channel (MASKED) or a step, from ``left`` on, is outside."""
    mask = (steps < left)[None, :]
    if MASKED:
        mask = mask & inside[:, None]
    return tl.load(x + offsets(channels, steps, STEP, CHANNEL, D, BLOCK_T), mask=mask, other=0.0)


@triton.jit
def store_tile(out, value, channels, inside, steps, left, STEP, D: tl.constexpr, MASKED: tl.constexpr,
               BLOCK_T: tl.constexpr):  # fmt: skip
    """Rows of an output, ``out`` at step 0; value: [channels, block_t], rounded to its dtype."""
    mask = (steps < left)[None, :]
    if MASKED:
        mask = mask & inside[:, None]
    tl.store(out + offsets(channels, steps, STEP, 1, D, BLOCK_T), value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def hand_on(gate, g, cuts, k: tl.constexpr):
    """What step k of the runs hands to the step before it: gate g, or 0 at a cut."""
    passed = gate * g
    if len(cuts) > 0:
        passed = tl.where(cuts[k], 0.0, passed)
    return passed


@triton.jit
def scan_tile(a, dy, cut, carry, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """(g [rows, block_t], carry [rows]): g = dy + c, c = a g, from ``carry`` on. cut: as in the forward."""
    LENGTH: tl.constexpr = BLOCK_T // RUNS
    gates = unstack(a, ROWS, BLOCK_T)
    values = unstack(dy, ROWS, BLOCK_T)
    cuts = unstack_cuts(cut, ROWS, BLOCK_T)
    product = gates[0]
    result = hand_on(gates[0], values[0], cuts, 0)
    for k in tl.static_range(1, LENGTH):
        product = gates[k] * product
        result = hand_on(gates[k], result + values[k], cuts, k)
    p = four(marked(product, cuts, LENGTH), ROWS)
    s = four(result, ROWS)
    c1 = apply(p[0], s[0], carry, cut)
    c2 = apply(p[1], s[1], c1, cut)
    c3 = apply(p[2], s[2], c2, cut)
    c = tl.reshape(tl.permute(tl.join(tl.join(carry, c1), tl.join(c2, c3)), (0, 2, 1)), (ROWS, RUNS))
    states = ()
    for k in tl.static_range(LENGTH):
        g = c + values[k]
        c = hand_on(gates[k], g, cuts, k)
        states += (g,)
    return stack(states, ROWS, BLOCK_T), apply(p[3], s[3], c3, cut)


@triton.jit
def backward_tile(
    dy,
    x,
    y,
    positions,
    w_i,
    w_r,
    bias_i,
    bias_r,
    decay_log2,
    h0,
    before_first,
    carry,
    outputs,
    steps,
    left,
    n: tl.constexpr,
    D: tl.constexpr,
    DY_STEP,
    DY_CHANNEL: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    Y_STEP,
    Y_CHANNEL: tl.constexpr,
    POSITION_STEP,
    FRESH: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """(dx's direct part, dz_i, dz_r, r dlog_a) [block_n, block_t] and the carry [block_n] after the tile.

    Pointers are at the tile's step 0 and the gate block's first channel. outputs: the program's channels
    within the block. left: steps to the sequence's first one, that one included; the state before it is before_first
    [block_n], or 0 without h0, and with FRESH it is a reset. Past it every result is 0.
    """
    MASKED: tl.constexpr = n % BLOCK_N != 0
    inside = outputs < n
    here = (steps < left)[None, :]
    first = (steps == left - 1)[None, :]
    z_i = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    z_r = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    for k in tl.static_range((n + PART - 1) // PART):
        inputs = k * PART + tl.arange(0, PART)
        part = load_tile(x, inputs, inputs < n, steps, left, X_STEP, X_CHANNEL, D, n % PART != 0, BLOCK_T)
        z_i = dot(w_i[k], part, z_i)
        z_r = dot(w_r[k], part, z_r)
    own = load_tile(x, outputs, inside, steps, left, X_STEP, X_CHANNEL, D, MASKED, BLOCK_T).to(tl.float32)
    upstream = load_tile(dy, outputs, inside, steps, left, DY_STEP, DY_CHANNEL, D, MASKED, BLOCK_T).to(tl.float32)
    states = load_tile(y + Y_STEP, outputs, inside, steps, left - 1, Y_STEP, Y_CHANNEL, D, MASKED, BLOCK_T)
    before = states.to(tl.float32)
    if h0 is not None:
        before = tl.where(first, before_first[:, None], before)
    y_i = argument(z_i, bias_i[:, None], False)
    y_r = argument(tl.where(here, z_r, float("-inf")), bias_r[:, None], False)
    i, r, a, v, _ = scaled_gates(y_i, y_r, decay_log2[:, None], False)
    m, slope = multiplier(v)
    cut = ()
    if positions is not None:
        where = tl.load(positions + steps.to(tl.int64) * POSITION_STEP, mask=steps < left, other=1)
        resets = (where == 0)[None, :]
        before = tl.where(resets, 0.0, before)
        m = tl.where(resets, 1.0, m)
        cut = (resets,)
    elif FRESH:
        m = tl.where(first, 1.0, m)
    g, carry = scan_tile(a, upstream, cut, carry, BLOCK_N, BLOCK_T)
    passed = a * g
    if positions is not None:
        passed = tl.where(resets, 0.0, passed)
    elif FRESH:
        # no tile comes after the first step's: the scan needs no cut there
        passed = tl.where((steps >= left - 1)[None, :], 0.0, passed)
    direct, dz_i, dz_r, r_dlog_a = gradients(g, passed, own, before, i, r, a, m, slope, decay_log2[:, None] * LN_2)
    return direct, dz_i, dz_r, r_dlog_a, carry
