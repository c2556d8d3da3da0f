"""Device functions of rg_lru_bwd that its Triton kernels share: what they visit, the equations of op.py.

Special functions per element, after the gates: one, since m and its derivative come from the same 1 / sqrt(v).

The fused scans, one pass or split over programs, go row by row in registers. Steps are visited from the last to the
first. The carry is c_t = a_t g_t, what a step hands to the one before it. The state before a step is the row of y that
is visited next. Gates are recomputed from z, which their gradients replace.

The fused gates go tile by tile in the matrix units' registers, laid out as in _triton_lru_tiles.py. A tile is
[channels, steps], steps in backward order: step 0 is the sequence's last. Strides are signed accordingly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton import tensors
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.elementwise import LN_2, gelu_and_slope
from griffin_kernels.ops.rg_lru import _triton_lru_tiles as tiles
from griffin_kernels.ops.rg_lru._triton_lru import TileOfSteps, gates_of, tile_flags, tile_rows
from griffin_kernels.ops.rg_lru._triton_lru_tiles import RUNS
from griffin_kernels.ops.rg_lru.op import MAX_SQRT_GRADIENT

LARGEST_SLOPE = tl.constexpr(MAX_SQRT_GRADIENT)
TINY = tl.constexpr(1e-37)
# of a tile of rg_lru_bwd_sums
SUM_ROWS = tl.constexpr(32)
SUM_D = tl.constexpr(64)


class GradientSteps(NamedTuple):
    """What the scan reads and writes step by step, or None: ``Rows``, from the last step on, of dy, x, y, of the branch
    whose gelu the states were multiplied by, and of positions [B,T]; dx and dbranch [B,T,D] and z [B*T,H,2,n], products
    in, gradients out, contiguous. With a branch dy is the product's gradient. Where pre-activations are given, z and
    z_r are ``Rows`` of the two gates', whose gradients go to dz_i and dz_r [B,T,D] contiguous.
    """

    dy: Any
    x: Any
    y: Any
    branch: Any
    positions: Any
    dx: Any
    dbranch: Any
    dz_i: Any
    dz_r: Any
    z: Any
    z_r: Any


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
def products_at(z, row, blocks_before, D: tl.constexpr):
    """``Rows`` of the input gate's products from row ``row`` on, backwards."""
    return tensors.dense(z + blocks_before, row, 2 * D, -1)


@bundling
def steps_at(steps, batch, time, T, blocks_before, D: tl.constexpr):
    """The steps of a batch entry from ``time`` on, backwards, all of them ``Rows``; of z those of the input gate.

    blocks_before: channels of the gate blocks before a channel's own, any shape that broadcasts with channels; for z of
    products alone.
    """
    row = batch * T + time
    return GradientSteps(
        *[tensors.at(rows, batch, time, -1) for rows in steps[:5]],
        *[tensors.dense(tensor, row, D, -1) for tensor in steps[5:9]],
        z=products_at(steps.z, row, blocks_before, D) if steps.z_r is None else tensors.at(steps.z, batch, time, -1),
        z_r=tensors.at(steps.z_r, batch, time, -1),
    )


@triton.jit
def blocks_before(channels, shape):
    """Channels of the gate blocks before each channel's own; 0 where pre-activations are given."""
    if shape.n is None:
        before = channels.columns * 0
    else:
        before = channels.columns // shape.n * shape.n
    return before


@bundling
def recurrence_rows(steps, shape):
    """``Rows`` of the recurrence gate's argument: beside the input gate's, or as given."""
    return tensors.further(steps.z, shape.n) if steps.z_r is None else steps.z_r


@bundling
def gradient_rows(steps, shape):
    """``Rows`` that gradients of both gates' arguments go to: over these, or apart."""
    return (steps.z, recurrence_rows(steps, shape)) if steps.dz_i is None else (steps.dz_i, steps.dz_r)


@bundling
def steps_later(steps, count):
    """The steps from ``count`` steps later on, as visited."""
    return GradientSteps(*[tensors.later(rows, count) for rows in steps])


@bundling
def added(sums, more):
    """Both sums together."""
    return Sums(sums.z_i + more.z_i, sums.z_r + more.z_r, sums.log_a + more.log_a)


@triton.jit
def store_sums(partial, row, sums, channels, shape):
    """Row ``row`` of partial [rows,3,D], or [rows,1,D] without biases, for rg_lru_bwd_sums."""
    COUNT: tl.constexpr = 1 if shape.n is None else 3
    D: tl.constexpr = shape.width
    for k in tl.static_range(COUNT):
        tensors.store_state(tensors.State(partial + k * D, COUNT * D, 1), row, sums[3 - COUNT + k], channels)


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


@bundling
def load_tile(steps, marks, channels, left, remaining, shape):
    """The tile at the first of ``left`` steps, of which later ones leave the carry as it is; remaining: see below."""
    dys, xs = (
        tile_rows(steps.dy, channels, left, 0.0, shape.block_t),
        tile_rows(steps.x, channels, left, 0.0, shape.block_t),
    )
    before = tile_rows(tensors.later(steps.y, 1), channels, remaining - 1, 0.0, shape.block_t)
    zs_i = tile_rows(steps.z, channels, left, 0.0, shape.block_t)
    zs_r = tile_rows(recurrence_rows(steps, shape), channels, left, float("-inf"), shape.block_t)
    others = tile_rows(steps.branch, channels, left, 0.0, shape.block_t)
    where, enters, leaves = tile_flags(steps.positions, marks, left, shape.block_t)
    return TileOfSteps(dys, xs, before, zs_i, zs_r, others, where, enters, leaves)


@bundling
def scan_rows(steps, marks, h0, gates, carry, before_first, channels, count, remaining, shape):
    """(carry [block_d], sums) after ``count`` steps from ``carry`` on, of which dx, z and dbranch are written.

    remaining: steps to the first one of the sequence, at least ``count``; the state before that one is before_first
    [block_d]. With ``marks`` h0 [N,D] holds the states before first steps.
    """
    rate = gates.decay_log2 * LN_2
    sums = Sums(tl.zeros_like(carry), tl.zeros_like(carry), tl.zeros_like(carry))
    if steps.branch is not None:
        current = tensors.load_rows(steps.y, channels, count, 0.0, 1, True)[0]
    if shape.ahead:
        ahead = load_tile(steps, marks, channels, count, remaining, shape)
    for begin in range(0, count, shape.block_t):
        left = count - begin
        dx, dbranch = steps.dx, steps.dbranch
        dz_i, dz_r = gradient_rows(steps, shape)
        if shape.ahead:
            tile = ahead
        else:
            tile = load_tile(steps, marks, channels, left, remaining - begin, shape)
        steps = steps_later(steps, shape.block_t)
        if marks is not None:
            marks = tensors.marks_later(marks, shape.block_t)
        if shape.ahead:
            ahead = load_tile(steps, marks, channels, left - shape.block_t, remaining - begin - shape.block_t, shape)
        for u in tl.static_range(shape.block_t):
            first = u == remaining - 1 - begin
            before = tile.y[u].to(tl.float32)
            if marks is not None:
                starts = tile.enters[u] >= 0
                carry = tl.where(
                    starts, tensors.load_state(marks.state, tile.enters[u], channels, tl.float32, starts), carry
                )
                first = tile.leaves[u] >= 0
                before = tl.where(first, tensors.load_state(h0, tile.leaves[u], channels, tl.float32, first), before)
            elif not shape.fresh:
                before = tl.where(first, before_first, before)
            i, r, a, v, _ = gates_of(tile.z_i[u].to(tl.float32), tile.z_r[u].to(tl.float32), gates, False)
            m, slope = multiplier(v)
            # a select rather than a gate of 0, which would let NaN pass
            if steps.positions is not None:
                before = tl.where(tile.positions[u] == 0, 0.0, before)
                m = tl.where(tile.positions[u] == 0, 1.0, m)
            elif shape.fresh:
                m = tl.where(first, 1.0, m)
            upstream = tile.dy[u].to(tl.float32)
            if steps.branch is not None:
                gelu, steepness = gelu_and_slope(tile.branch[u].to(tl.float32))
                tensors.store_row(dbranch, u, upstream * current.to(tl.float32) * steepness, channels, left, True)
                upstream *= gelu
                current = tile.y[u]
            g = upstream + carry
            carry = a * g
            if steps.positions is not None:
                carry = tl.where(tile.positions[u] == 0, 0.0, carry)
            elif shape.fresh:
                carry = tl.where(first, 0.0, carry)
            direct, more = gradients(g, carry, tile.x[u].to(tl.float32), before, i, r, a, m, slope, rate)
            sums = added(sums, more)
            tensors.store_row(dx, u, direct, channels, left, True)
            tensors.store_row(dz_i, u, more.z_i, channels, left, True)
            tensors.store_row(dz_r, u, more.z_r, channels, left, True)
            if marks is not None:
                if marks.final is not None:
                    tensors.store_state(marks.final, tile.leaves[u], carry, channels, first)
    return carry, sums


@triton.jit
def reduce_rows(steps, marks, gates, channels, count, shape):
    """(P, S) [block_d] of ``count`` steps, a multiple of block_t, as one map c -> P c + S of what is handed to them."""
    p = tl.full(channels.columns.shape, 1.0, dtype=tl.float32)
    s = tl.zeros(channels.columns.shape, dtype=tl.float32)
    for begin in range(0, count, shape.block_t):
        dys = tensors.load_rows(tensors.later(steps.dy, begin), channels, shape.block_t, 0.0, shape.block_t, False)
        zs_r = tensors.load_rows(
            tensors.later(recurrence_rows(steps, shape), begin), channels, shape.block_t, 0.0, shape.block_t, False
        )
        if steps.branch is not None:
            others = tensors.load_rows(
                tensors.later(steps.branch, begin), channels, shape.block_t, 0.0, shape.block_t, False
            )
        where = tensors.load_flags(tensors.later(steps.positions, begin), shape.block_t, 1, shape.block_t, False)
        if marks is not None:
            enters = tensors.load_flags(tensors.later(marks.enter, begin), shape.block_t, -1, shape.block_t, False)
        for u in tl.static_range(shape.block_t):
            if marks is not None:
                starts = enters[u] >= 0
                p = tl.where(starts, 0.0, p)
                s = tl.where(starts, tensors.load_state(marks.state, enters[u], channels, tl.float32, starts), s)
            a = tl.exp2(gates.decay_log2 * tl.sigmoid(zs_r[u].to(tl.float32) + gates.bias_r))
            # no gradient passes a packed sequence's first step anyway: the next one visited starts from dh_last
            upstream = dys[u].to(tl.float32)
            if steps.branch is not None:
                gelu, _ = gelu_and_slope(others[u].to(tl.float32))
                upstream *= gelu
            p = a * p
            s = a * (s + upstream)
            if steps.positions is not None:
                p = tl.where(where[u] == 0, 0.0, p)
                s = tl.where(where[u] == 0, 0.0, s)
    return p, s


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
    gates = tiles.unstack(a, ROWS, BLOCK_T)
    values = tiles.unstack(dy, ROWS, BLOCK_T)
    cuts = tiles.unstack_cuts(cut, ROWS, BLOCK_T)
    product = gates[0]
    result = hand_on(gates[0], values[0], cuts, 0)
    for k in tl.static_range(1, LENGTH):
        product = gates[k] * product
        result = hand_on(gates[k], result + values[k], cuts, k)
    p = tiles.four(tiles.marked(product, cuts, LENGTH), ROWS)
    s = tiles.four(result, ROWS)
    c1 = tiles.apply(p[0], s[0], carry, cut)
    c2 = tiles.apply(p[1], s[1], c1, cut)
    c3 = tiles.apply(p[2], s[2], c2, cut)
    c = tl.reshape(tl.permute(tl.join(tl.join(carry, c1), tl.join(c2, c3)), (0, 2, 1)), (ROWS, RUNS))
    states = ()
    for k in tl.static_range(LENGTH):
        g = c + values[k]
        c = hand_on(gates[k], g, cuts, k)
        states += (g,)
    return tiles.stack(states, ROWS, BLOCK_T), tiles.apply(p[3], s[3], c3, cut)


@bundling
def backward_tile(steps, block, carry, before_first, order, begin, left, shape):
    """(dx's direct part, its ``Sums``) [block_n, block_t] and the carry [block_n] after the tile at step ``begin``.

    left: steps from there to the sequence's first one, that one included; the state before it is before_first
    [block_n], or 0 where that is None, and with ``fresh`` it is a reset. Past it every result is 0.
    """
    channels = block.channels
    here = (order < left)[None, :]
    first = (order == left - 1)[None, :]
    z_i, z_r = tiles.gate_products(tensors.later(steps.x, begin), block, order, left, shape)
    own = tiles.load_tile(tensors.later(steps.x, begin), channels, order, left, shape.width).to(tl.float32)
    upstream = tiles.load_tile(tensors.later(steps.dy, begin), channels, order, left, shape.width).to(tl.float32)
    before = tiles.load_tile(tensors.later(steps.y, begin + 1), channels, order, left - 1, shape.width).to(tl.float32)
    if before_first is not None:
        before = tl.where(first, before_first[:, None], before)
    i, r, a, v, _ = gates_of(z_i, tl.where(here, z_r, float("-inf")), block.gates, False)
    m, slope = multiplier(v)
    cut = ()
    if steps.positions is not None:
        resets = (tiles.load_steps(tensors.later(steps.positions, begin), order, order < left, 1) == 0)[None, :]
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
    order = tiles.steps_of_columns(shape.block_t)
    for begin in tl.range(0, count, shape.block_t, num_stages=shape.stages):
        left = count - begin
        direct, more, carry = backward_tile(steps, block, carry, before_first, order, begin, left, shape)
        tiles.store_tile(tensors.later(steps.dx, begin), direct, channels, order, left, shape.width)
        tiles.store_tile(tensors.later(steps.z, begin), more.z_i, channels, order, left, shape.width)
        tiles.store_tile(
            tensors.later(tensors.further(steps.z, shape.n), begin), more.z_r, channels, order, left, shape.width
        )
        sums = added(sums, Sums(tl.sum(more.z_i, axis=1), tl.sum(more.z_r, axis=1), tl.sum(more.log_a, axis=1)))
    return carry, sums


@triton.jit(do_not_specialize=["rows"])
def rg_lru_bwd_sums(
    partial, a_param, da_param, dinput_gate_bias, drecurrence_gate_bias, rows, c, D: tl.constexpr, STRIDE: tl.constexpr
):
    """partial [rows, 3, D]: sums of dz_i, dz_r, r dlog_a -> the gradients [D]. Grid: 3 * blocks of D.

    Without biases: partial [rows, 1, D], r dlog_a alone. Grid: blocks of D. STRIDE: elements from channel to channel of
    a_param. log a = -c softplus(a_param) r.
    """
    BLOCKS: tl.constexpr = (D + SUM_D - 1) // SUM_D
    COUNT: tl.constexpr = 1 if dinput_gate_bias is None else 3
    which = tl.program_id(0) // BLOCKS
    columns = (tl.program_id(0) % BLOCKS) * SUM_D + tl.arange(0, SUM_D)
    inside = columns < D
    at = tl.arange(0, SUM_ROWS)
    total = tl.zeros((SUM_ROWS, SUM_D), dtype=tl.float32)
    for begin in range(0, rows, SUM_ROWS):
        row = (begin + at).to(tl.int64) * COUNT + which
        mask = (begin + at < rows)[:, None] & inside[None, :]
        total += tl.load(partial + (row * D)[:, None] + columns[None, :], mask=mask, other=0.0)
    value = tl.sum(total, axis=0)
    if COUNT == 3:
        if which == 0:
            tl.store(dinput_gate_bias + columns, value.to(dinput_gate_bias.dtype.element_ty), mask=inside)
        elif which == 1:
            tl.store(drecurrence_gate_bias + columns, value.to(drecurrence_gate_bias.dtype.element_ty), mask=inside)
    if which == COUNT - 1:
        slope = tl.sigmoid(tl.load(a_param + columns * STRIDE, mask=inside, other=0.0).to(tl.float32))
        tl.store(da_param + columns, (slope * value * -c).to(da_param.dtype.element_ty), mask=inside)
