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

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.strides import reach
from griffin_kernels.ops.rg_lru._triton_jit import argument, gelu, scaled_gates

RUNS = tl.constexpr(4)
CUT = tl.constexpr(-1.0)


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
def offsets(channels, steps, STEP, CHANNEL: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr):
    """Offsets [channels, steps] of a tile in elements, 64-bit only where 32 are too few."""
    if (BLOCK_T + 1) * reach(STEP) + 2 * D * CHANNEL >= 2**31:
        steps = steps.to(tl.int64)
        channels = channels.to(tl.int64)
    return channels[:, None] * CHANNEL + steps[None, :] * STEP


@triton.jit
def load_tile(x, channels, inside, steps, left, STEP, CHANNEL: tl.constexpr, D: tl.constexpr,
              MASKED: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """x^T [channels, block_t]; 0 where a channel or a step is outside. x: at the tile's first step."""
    mask = (steps < left)[None, :]
    if MASKED:
        mask = mask & inside[:, None]
    return tl.load(x + offsets(channels, steps, STEP, CHANNEL, D, BLOCK_T), mask=mask, other=0.0)


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


@triton.jit
def gate_tile(
    x,
    positions,
    enter,
    h0,
    h0_row,
    w_i,
    w_r,
    bias_i,
    bias_r,
    decay_log2,
    outputs,
    columns,
    steps,
    begin,
    left,
    n: tl.constexpr,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    POSITION_STEP,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    FAST: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """(a, u) [block_n, block_t] of h = a h + u, and where it is cut: a tuple of bool [1, block_t], or an empty one.

    Pointers are at the tile's first step, x at the block's first channel. outputs: the program's channels within the
    block; columns: within D. begin: steps before the tile, of the sequence where the time is one; else ``enter``
    marks the steps where sequences start, and h0 [N,D] are their states. FRESH: a sequence's first step is a reset.
    Steps from ``left`` on leave a state as it is.
    """
    here = steps < left
    z_i = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    z_r = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    for k in tl.static_range((n + PART - 1) // PART):
        inputs = k * PART + tl.arange(0, PART)
        part = load_tile(x, inputs, inputs < n, steps, left, X_STEP, X_CHANNEL, D, n % PART != 0, BLOCK_T)
        z_i = dot(w_i[k], part, z_i)
        z_r = dot(w_r[k], part, z_r)
    own = load_tile(x, outputs, outputs < n, steps, left, X_STEP, X_CHANNEL, D, n % BLOCK_N != 0, BLOCK_T)
    y_i = argument(z_i, bias_i[:, None], FAST)
    y_r = argument(tl.where(here[None, :], z_r, float("-inf")), bias_r[:, None], FAST)
    i, _, a, _, m = scaled_gates(y_i, y_r, decay_log2[:, None], FAST)
    cut = ()
    if positions is not None:
        where = tl.load(positions + steps.to(tl.int64) * POSITION_STEP, mask=here, other=1)
        resets = (where == 0)[None, :]
        m = tl.where(resets, 1.0, m)
        cut = (resets,)
    if enter is not None:
        starts = tl.load(enter + steps, mask=here, other=-1)
        begins = (starts >= 0)[None, :]
        if FRESH:
            m = tl.where(begins, 1.0, m)
    elif FRESH:
        # apart, the compiler sees which registers cannot hold step 0
        m = tl.where(((steps == 0) & (begin == 0))[None, :], 1.0, m)
    u = m * i * own.to(tl.float32)
    if enter is not None:
        if h0 is not None:
            place = h0 + starts.to(tl.int64)[None, :] * h0_row + columns[:, None] * H0_CHANNEL
            taken = begins
            if positions is not None:
                taken = begins & ~resets
            u += a * tl.load(place, mask=taken & (outputs < n)[:, None], other=0.0).to(tl.float32)
        if positions is not None:
            cut = (begins | resets,)
        else:
            cut = (begins,)
    return a, u, cut


@triton.jit
def store_tile(y, out, branch, states, outputs, columns, inside, steps, left, n: tl.constexpr, D: tl.constexpr,
               BRANCH_STEP, BRANCH_CHANNEL: tl.constexpr, FAST: tl.constexpr, BLOCK_N: tl.constexpr,
               BLOCK_T: tl.constexpr):  # fmt: skip
    """The states [channels, block_t] to y, and times gelu(branch) to out, whichever there is.

    y and out: [.., D] rows at the tile's first step; branch there too, at the block's first channel.
    """
    MASKED: tl.constexpr = n % BLOCK_N != 0
    place = steps[None, :] * D + columns[:, None]
    mask = (steps < left)[None, :]
    if MASKED:
        mask = mask & inside[:, None]
    if y is not None:
        tl.store(y + place, states.to(y.dtype.element_ty), mask=mask)
    if out is not None:
        other = load_tile(branch, outputs, inside, steps, left, BRANCH_STEP, BRANCH_CHANNEL, D, MASKED, BLOCK_T)
        tl.store(out + place, (states * gelu(other.to(tl.float32), FAST)).to(out.dtype.element_ty), mask=mask)
