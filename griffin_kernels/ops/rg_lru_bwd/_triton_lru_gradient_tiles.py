"""Gates and backward scan of one tile in the matrix units' registers; laid out as in _triton_lru_tiles.py.

A tile is [channels, steps], steps in backward order: step 0 is the sequence's last. Strides are signed accordingly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.elementwise import LN_2
from griffin_kernels.ops._triton.tensors import further, later
from griffin_kernels.ops.rg_lru._triton_lru import gates_of
from griffin_kernels.ops.rg_lru._triton_lru_tiles import (
    RUNS,
    apply,
    four,
    gate_products,
    load_steps,
    load_tile,
    marked,
    stack,
    steps_of_columns,
    store_tile,
    unstack,
    unstack_cuts,
)
from griffin_kernels.ops.rg_lru_bwd._triton_lru_gradient import Sums, added, gradients, multiplier


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


@bundling
def backward_tile(steps, block, carry, before_first, order, begin, left, shape):
    """(dx's direct part, its ``Sums``) [block_n, block_t] and the carry [block_n] after the tile at step ``begin``.

    left: steps from there to the sequence's first one, that one included; the state before it is before_first
    [block_n], or 0 where that is None, and with ``fresh`` it is a reset. Past it every result is 0.
    """
    channels = block.channels
    here = (order < left)[None, :]
    first = (order == left - 1)[None, :]
    z_i, z_r = gate_products(later(steps.x, begin), block, order, left, shape)
    own = load_tile(later(steps.x, begin), channels, order, left, shape.width).to(tl.float32)
    upstream = load_tile(later(steps.dy, begin), channels, order, left, shape.width).to(tl.float32)
    before = load_tile(later(steps.y, begin + 1), channels, order, left - 1, shape.width).to(tl.float32)
    if before_first is not None:
        before = tl.where(first, before_first[:, None], before)
    i, r, a, v, _ = gates_of(z_i, tl.where(here, z_r, float("-inf")), block.gates, False)
    m, slope = multiplier(v)
    cut = ()
    if steps.positions is not None:
        resets = (load_steps(later(steps.positions, begin), order, order < left, 1) == 0)[None, :]
        before = tl.where(resets, 0.0, before)
        m = tl.where(resets, 1.0, m)
        cut = (resets,)
    elif shape.fresh:
        m = tl.where(first, 1.0, m)
    g, carry = scan_tile(a, upstream, cut, carry, shape.block_n, shape.block_t)
    passed = a * g
    if steps.positions is not None:
        passed = tl.where(resets, 0.0, passed)
    elif shape.fresh:
        # no tile comes after the first step's: the scan needs no cut there
        passed = tl.where((order >= left - 1)[None, :], 0.0, passed)
    rate = block.gates.decay_log2 * LN_2
    direct, sums = gradients(g, passed, own, before, i, r, a, m, slope, rate)
    return direct, sums, carry


@bundling
def scan_block(steps, block, carry, before_first, count, shape):
    """(carry [block_n], sums) after ``count`` steps from ``carry`` on, of which dx and z are written.

    steps: as ``steps_at`` gives them, which under a name of their own would lose constant strides.
    """
    channels = block.channels
    sums = Sums(tl.zeros_like(carry), tl.zeros_like(carry), tl.zeros_like(carry))
    order = steps_of_columns(shape.block_t)
    for begin in tl.range(0, count, shape.block_t, num_stages=shape.stages):
        left = count - begin
        direct, more, carry = backward_tile(steps, block, carry, before_first, order, begin, left, shape)
        store_tile(later(steps.dx, begin), direct, channels, order, left, shape.width)
        store_tile(later(steps.z, begin), more.z_i, channels, order, left, shape.width)
        store_tile(later(further(steps.z, shape.n), begin), more.z_r, channels, order, left, shape.width)
        sums = added(sums, Sums(tl.sum(more.z_i, axis=1), tl.sum(more.z_r, axis=1), tl.sum(more.log_a, axis=1)))
    return carry, sums
