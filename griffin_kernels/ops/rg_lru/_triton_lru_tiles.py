"""Gate products and scan of one tile without leaving the matrix units' registers: what the fused_gates kernels share.

A tile is [channels, steps]: z = W^T x^T puts the sums of a channel into the registers of four neighbouring threads, as
every NVIDIA matrix instruction from sm_80 on lays out its results: column q of eight goes to thread q / 2 of the four.
Which step a column is, is free: ``steps_of_columns`` deals the steps so that each of the four holds a quarter of the
tile in order. A tile is then four runs of steps, scanned side by side in registers, and only the four runs' maps, two
numbers each, go between threads. Where an instruction lays out its results otherwise the compiler moves them first,
and the answer is the same.

A cut is a step that takes nothing from the one before it. It is a select, not a gate of 0, which would let NaN pass. In
a product of gates, which is never negative, CUT stands for a run with a cut.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton import pools
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.elementwise import gelu
from griffin_kernels.ops._triton.strides import far, reach
from griffin_kernels.ops._triton.tensors import Channels, later
from griffin_kernels.ops.rg_lru._triton_lru import Gates, gates_of, load_gates

RUNS = tl.constexpr(4)
CUT = tl.constexpr(-1.0)


class GateBlock(NamedTuple):
    """A program's part of gate block ``number``: its channels, W^T of both gates as ``load_weight`` gives it, and gates
    as [block_n, 1].
    """

    number: Any
    channels: Any
    w_i: Any
    w_r: Any
    gates: Any


@triton.jit
def steps_of_columns(BLOCK_T: tl.constexpr):
    """[block_t]: which step of the tile each column is."""
    q = tl.arange(0, BLOCK_T)
    return q // 2 % RUNS * (BLOCK_T // RUNS) + q // (2 * RUNS) * 2 + q % 2


@triton.jit
def unstack(tile, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """[rows, block_t] -> block_t / RUNS tensors [rows, RUNS], step by step of the runs."""
    LENGTH: tl.constexpr = BLOCK_T // RUNS
    by_run = tl.permute(tl.reshape(tile, (ROWS, LENGTH // 2, RUNS, 2)), (0, 2, 1, 3))
    parts = (tl.reshape(by_run, (ROWS, RUNS, LENGTH)),)
    for level in tl.static_range(5):
        if 2**level < LENGTH:
            halves = ()
            for k in tl.static_range(2**level):
                pair = tl.reshape(parts[k], (ROWS, RUNS, 2, LENGTH // 2 // 2**level))
                first, second = tl.split(tl.permute(pair, (0, 1, 3, 2)))
                halves += (first, second)
            parts = halves
    found = ()
    for k in tl.static_range(LENGTH):
        found += (tl.reshape(parts[k], (ROWS, RUNS)),)
    return found


@triton.jit
def stack(parts, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """The inverse of ``unstack``."""
    LENGTH: tl.constexpr = BLOCK_T // RUNS
    wide = ()
    for k in tl.static_range(LENGTH):
        wide += (tl.reshape(parts[k], (ROWS, RUNS, 1)),)
    for level in tl.static_range(5):
        if 2**level < LENGTH:
            pairs = ()
            for k in tl.static_range(LENGTH // 2 // 2**level):
                pair = tl.permute(tl.join(wide[2 * k], wide[2 * k + 1]), (0, 1, 3, 2))
                pairs += (tl.reshape(pair, (ROWS, RUNS, 2 * 2**level)),)
            wide = pairs
    by_run = tl.reshape(wide[0], (ROWS, RUNS, LENGTH // 2, 2))
    return tl.reshape(tl.permute(by_run, (0, 2, 1, 3)), (ROWS, BLOCK_T))


@triton.jit
def four(runs, ROWS: tl.constexpr):
    """[rows, RUNS] -> RUNS tensors [rows]."""
    first, second = tl.split(tl.permute(tl.reshape(runs, (ROWS, 2, 2)), (0, 2, 1)))
    r0, r1 = tl.split(first)
    r2, r3 = tl.split(second)
    return r0, r1, r2, r3


@triton.jit
def unstack_cuts(cut, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """A tuple of a cut [1, block_t], or an empty one, as ``unstack`` gives tiles."""
    cuts = ()
    if len(cut) > 0:
        cuts = unstack(tl.broadcast_to(cut[0], (ROWS, BLOCK_T)), ROWS, BLOCK_T)
    return cuts


@triton.jit
def marked(p, cuts, LENGTH: tl.constexpr):
    """Runs' products of gates [rows, RUNS], CUT where one of the run's steps is a cut."""
    if len(cuts) > 0:
        some = cuts[0]
        for k in tl.static_range(1, LENGTH):
            some = some | cuts[k]
        p = tl.where(some, CUT, p)
    return p


@triton.jit
def apply(p, s, state, cut):
    """What a run makes of the state that enters it: p state + s, or s where p is CUT."""
    after = p * state + s
    if len(cut) > 0:
        after = tl.where(p < 0.0, s, after)
    return after


@triton.jit
def advance(gate, value, state, cuts, k: tl.constexpr):
    """The state after step k of the runs."""
    after = gate * state + value
    if len(cuts) > 0:
        after = tl.where(cuts[k], value, after)
    return after


@triton.jit
def maps_of_runs(gates, values, cuts, ROWS: tl.constexpr, LENGTH: tl.constexpr):
    """(P, S), four tensors [rows] each: what every run makes of the state that enters it, see ``apply``."""
    p = gates[0]
    s = values[0]
    for k in tl.static_range(1, LENGTH):
        p = gates[k] * p
        s = advance(gates[k], values[k], s, cuts, k)
    return four(marked(p, cuts, LENGTH), ROWS), four(s, ROWS)


@triton.jit
def scan_tile(a, u, cut, carry, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """(states [rows, block_t], carry [rows]) of h = a h + u over the tile's steps, from ``carry`` on.

    cut: a tuple of bool [1, block_t], where a h counts as 0; an empty one where nothing is cut.
    """
    LENGTH: tl.constexpr = BLOCK_T // RUNS
    gates = unstack(a, ROWS, BLOCK_T)
    values = unstack(u, ROWS, BLOCK_T)
    cuts = unstack_cuts(cut, ROWS, BLOCK_T)
    p, s = maps_of_runs(gates, values, cuts, ROWS, LENGTH)
    h1 = apply(p[0], s[0], carry, cut)
    h2 = apply(p[1], s[1], h1, cut)
    h3 = apply(p[2], s[2], h2, cut)
    entering = tl.permute(tl.join(tl.join(carry, h1), tl.join(h2, h3)), (0, 2, 1))
    h = tl.reshape(entering, (ROWS, RUNS))
    states = ()
    for k in tl.static_range(LENGTH):
        h = advance(gates[k], values[k], h, cuts, k)
        states += (h,)
    return stack(states, ROWS, BLOCK_T), apply(p[3], s[3], h3, cut)


@triton.jit
def reduce_tile(a, u, cut, product, result, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """The map (product, result) [rows] of what came before, followed by the tile's; product is 0 after a cut."""
    gates = unstack(a, ROWS, BLOCK_T)
    values = unstack(u, ROWS, BLOCK_T)
    cuts = unstack_cuts(cut, ROWS, BLOCK_T)
    p, s = maps_of_runs(gates, values, cuts, ROWS, BLOCK_T // RUNS)
    for k in tl.static_range(RUNS):
        product = apply(p[k], 0.0, product, cut)
        result = apply(p[k], s[k], result, cut)
    return product, result


@triton.jit
def offsets(rows, columns, order, D: tl.constexpr):
    """Offsets [channels, steps] of a tile in elements, 64-bit only where 32 are too few."""
    if (order.shape[0] + 1) * reach(rows.step) + 2 * D * reach(rows.channel) >= 2**31:
        order = order.to(tl.int64)
        columns = columns.to(tl.int64)
    return columns[:, None] * rows.channel + order[None, :] * far(rows.step)


@triton.jit
def mask_of(channels, order, left):
    """[channels, block_t], or [1, block_t] where no channel is outside: what is there, of ``left`` steps."""
    mask = (order < left)[None, :]
    if channels.mask is not None:
        mask = mask & channels.mask[:, None]
    return mask


@triton.jit
def load_tile(rows, channels, order, left, D: tl.constexpr):
    """Rows of a tile as [channels, block_t]; 0 where a channel or a step is outside."""
    place = rows.at + offsets(rows, channels.columns, order, D)
    return tl.load(place, mask=mask_of(channels, order, left), other=0.0)


@triton.jit
def store_tile(rows, value, channels, order, left, D: tl.constexpr):
    """Rows of an output; value: [channels, block_t], rounded to its dtype."""
    place = rows.at + offsets(rows, channels.columns, order, D)
    tl.store(place, value.to(rows.at.dtype.element_ty), mask=mask_of(channels, order, left))


@triton.jit
def load_steps(flags, order, here, OTHER: tl.constexpr):
    """Flags [block_t] of a tile's steps, OTHER where they are not ``here``."""
    return tl.load(flags.at + order.to(tl.int64) * flags.step, mask=here, other=OTHER)


@triton.jit
def state_at(state, rows, channels):
    """Pointers [channels, block_t] to rows [block_t] of a state [N,D]."""
    return state.at + rows.to(tl.int64)[None, :] * state.row + channels.columns[:, None] * state.channel


@triton.jit
def load_weight(weight, block, outputs, n: tl.constexpr, PART: tl.constexpr):
    """W^T of one block as a tuple of [outputs, PART], cut along the channels that products sum over; 0 beyond n.

    weight: [H,n,n] contiguous, input channel first.
    """
    parts = ()
    for k in tl.static_range((n + PART - 1) // PART):
        inputs = k * PART + tl.arange(0, PART)
        place = weight + tl.cast(block, tl.int64) * (n * n) + inputs[None, :] * n + outputs[:, None]
        parts += (tl.load(place, mask=(inputs < n)[None, :] & (outputs < n)[:, None], other=0.0),)
    return parts


@bundling
def slice_of(block, within, SIZE: tl.constexpr, shape):
    """The channels ``within`` a gate block, one of its slices of SIZE."""
    return Channels(block * shape.n + within, within < shape.n, None if shape.n % SIZE == 0 else within < shape.n)


@bundling
def own_block(place, parameters, shape):
    """(row, block) of program ``place`` of rows * H * ceil(n / block_n), a gate block's slices fastest."""
    SLICES: tl.constexpr = (shape.n + shape.block_n - 1) // shape.block_n
    block = place // SLICES % (shape.width // shape.n)
    outputs = place % SLICES * shape.block_n + tl.arange(0, shape.block_n)
    channels = slice_of(block, outputs, shape.block_n, shape)
    bias_i, bias_r, decay_log2 = load_gates(parameters, channels)
    w_i = load_weight(parameters.weight_i, block, outputs, shape.n, shape.part)
    w_r = load_weight(parameters.weight_r, block, outputs, shape.n, shape.part)
    gates = Gates(bias_i[:, None], bias_r[:, None], decay_log2[:, None])
    return place // (SLICES * (shape.width // shape.n)), GateBlock(block, channels, w_i, w_r, gates)


@triton.jit
def gate_products(x, block, order, left, shape):
    """x W_i and x W_r [block_n, block_t] of a tile, float32."""
    z_i = tl.zeros((shape.block_n, shape.block_t), dtype=tl.float32)
    z_r = tl.zeros((shape.block_n, shape.block_t), dtype=tl.float32)
    for k in tl.static_range((shape.n + shape.part - 1) // shape.part):
        inputs = slice_of(block.number, tl.arange(0, shape.part) + k * shape.part, shape.part, shape)
        part = load_tile(x, inputs, order, left, shape.width)
        z_i = dot(block.w_i[k], part, z_i)
        z_r = dot(block.w_r[k], part, z_r)
    return z_i, z_r


@triton.jit
def gate_tile(steps, marks, block, order, begin, left, before, shape):
    """(a, u) [block_n, block_t] of h = a h + u, and where it is cut: a tuple of bool [1, block_t], or an empty one.

    The tile is at step ``begin`` of ``steps`` and ``marks``, of which ``left`` are to come. ``before``: steps before
    those, of the sequence where the time is one; else ``marks`` tell where sequences start. FRESH: a sequence's first
    step is a reset. Steps from ``left`` on leave a state as it is.
    """
    channels = block.channels
    here = order < left
    z_i, z_r = gate_products(later(steps.x, begin), block, order, left, shape)
    own = load_tile(later(steps.x, begin), channels, order, left, shape.width)
    i, _, a, _, m = gates_of(z_i, tl.where(here[None, :], z_r, float("-inf")), block.gates, shape.fast)
    cut = ()
    if steps.positions is not None:
        where = load_steps(later(steps.positions, begin), order, here, 1)
        resets = (where == 0)[None, :]
        m = tl.where(resets, 1.0, m)
        cut = (resets,)
    if marks is not None:
        starts = load_steps(later(marks.enter, begin), order, here, -1)
        begins = (starts >= 0)[None, :]
        if shape.fresh:
            m = tl.where(begins, 1.0, m)
    elif shape.fresh:
        # apart, the compiler sees which registers cannot hold step 0; 64 bits would cost two registers a stage
        m = tl.where(((order == 0) & (tl.cast(before, tl.int32) + begin == 0))[None, :], 1.0, m)
    u = m * i * own.to(tl.float32)
    if marks is not None:
        if marks.state is not None:
            taken = begins
            if steps.positions is not None:
                taken = begins & ~resets
            first = state_at(marks.state, starts, channels)
            u += a * tl.load(first, mask=taken & channels.inside[:, None], other=0.0).to(tl.float32)
        if steps.positions is not None:
            cut = (begins | resets,)
        else:
            cut = (begins,)
    return a, u, cut


@bundling
def scan_block(steps, marks, block, carry, before, count, shape, kept=None):
    """The carry [block_n] after ``count`` steps from ``carry`` on, which y and out get; ``before`` come earlier.

    kept: at the first step; where states are kept.
    steps: at the first of them, straight from ``steps_at``: under a name their constant strides would be lost.
    """
    channels = block.channels
    order = steps_of_columns(shape.block_t)
    y, out = steps.y, steps.out  # moved in the loop: every stage of it would keep an offset
    for begin in tl.range(0, count, shape.block_t, num_stages=shape.stages):
        left = count - begin
        a, u, cut = gate_tile(steps, marks, block, order, begin, left, before, shape)
        states, carry = scan_tile(a, u, cut, carry, shape.block_n, shape.block_t)
        if y is not None:
            store_tile(y, states, channels, order, left, shape.width)
            y = later(y, shape.block_t)
        if out is not None:
            branch = load_tile(later(steps.branch, begin), channels, order, left, shape.width).to(tl.float32)
            store_tile(out, states * gelu(branch, shape.fast), channels, order, left, shape.width)
            out = later(out, shape.block_t)
        if marks is not None:
            ends = load_steps(later(marks.leave, begin), order, order < left, -1)
            last = state_at(marks.final, ends, channels)
            tl.store(last, states, mask=(ends >= 0)[None, :] & channels.inside[:, None])
        if kept is not None:
            targets = load_steps(later(kept.places, begin), order, order < left, -1)
            rows = state_at(kept.states, targets, channels)
            tl.store(rows, states, mask=pools.has(kept, targets)[None, :] & channels.inside[:, None])
    return carry


@bundling
def reduce_block(steps, marks, block, before, count, shape):
    """(P, S) [block_n] of ``count`` steps, after ``before``, as one map of the state that enters them, h -> P h + S."""
    order = steps_of_columns(shape.block_t)
    p = tl.full((shape.block_n,), 1.0, dtype=tl.float32)
    s = tl.zeros((shape.block_n,), dtype=tl.float32)
    for begin in tl.range(0, count, shape.block_t, num_stages=shape.stages):
        a, u, cut = gate_tile(steps, marks, block, order, begin, count - begin, before, shape)
        p, s = reduce_tile(a, u, cut, p, s, shape.block_n, shape.block_t)
    return p, s
