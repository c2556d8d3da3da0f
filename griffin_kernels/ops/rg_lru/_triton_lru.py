"""Device functions that rg_lru's Triton kernels share, forward and backward: gates, decay, multiplier; rows of a scan.

    i = sigmoid(z_i + b_i),  r = sigmoid(z_r + b_r),  log a = -8 softplus(a_param) r
    v = 1 - a^2 = -expm1(2 log a),  m = sqrt(v)

Everything is float32. What does not cancel and what does not overflow is said once, here. Two accuracies, with what one
element costs on NVIDIA, from the two sums of products to i, a and m, as compiled for sm_90:

    exact   5 special functions (EX2, EX2, RCP, EX2, SQRT) of 24 instructions, within some 2^-21 of the true values:
            any dtype
    fast    4 (TANH, TANH, EX2, SQRT) of 12: the sigmoids come from the hardware's tanh, relative error 2^-11, v is
            within 2^-13. Below bfloat16's rounding of the arguments, above float16's.

Exact needs 5 rather than 7 special functions because one reciprocal serves both sigmoids. Only NVIDIA has a tanh
instruction; elsewhere, the interpreter included, fast takes the sigmoids of exact.
Source: arXiv 2402.19427, section 2.4 and appendix A; PTX ISA, tanh.approx, ex2.approx and rcp.approx, for the errors.

The fused scans go row by row in registers. A tile is ``block_t`` rows of x and of both gates' products, loaded before
the first is used; with ``ahead`` the tile after it is in flight while one is worked on, because a row here takes some
fifty instructions and not two as in a scan alone. Rows past the end read products of minus infinity and an x of 0,
which leave a state as it is.

Packed sequences come in two ways, as in linear_scan: a program owns one, or ``Marks`` tell where sequences start and
end. At a reset the state before is replaced by 0, not multiplied by it: it
may be NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton import tensors
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.elementwise import (
    LARGEST_EXPONENT,
    LN_2,
    LOG2_E,
    exp2,
    for_nvidia,
    gelu,
    reciprocal,
    tanh_approx,
)
from griffin_kernels.ops.rg_lru.op import DECAY

DECAY_LOG2 = tl.constexpr(-DECAY * 1.4426950408889634)
# 1 - a^2 is off by up to 2^-21 through a's own error; less this margin it is below the true value
MARGIN = tl.constexpr(2.0**-20)


class Shape(NamedTuple):
    """Compile-time sizes and facts; those that a kernel does not use are None.

    width: D. fresh: a sequence's first step is a reset. fast: see above. chunk: steps of a program that has a part of
    time. block_t, block_n: steps and channels of a tile. ahead: see above. n: a gate block's channels, of which
    products sum over ``part`` at a time. stages: tiles of x in shared memory.
    """

    width: Any
    fresh: Any
    fast: Any = None
    chunk: Any = None
    block_t: Any = None
    block_n: Any = None
    ahead: Any = None
    n: Any = None
    part: Any = None
    stages: Any = None


class Steps(NamedTuple):
    """What a scan reads and writes step by step, or None: ``Rows`` of x, of a branch, of positions [B,T], and of both
    gates' products z_i, z_r where they are given; y for the states and out for them times gelu(branch), [B,T,D]
    contiguous.
    """

    x: Any
    branch: Any
    positions: Any
    z_i: Any
    z_r: Any
    y: Any
    out: Any


class Parameters(NamedTuple):
    """a_param [D], biases [H,n], and weights [H,n,n] unless their products are given; contiguous.

    Where pre-activations are given there are no biases. scale: log2 a = scale softplus(a_param) r; None for rg_lru's.
    """

    a_param: Any
    weight_i: Any
    bias_i: Any
    weight_r: Any
    bias_r: Any
    scale: Any = None


class Gates(NamedTuple):
    """What gates of a tile's channels take besides products, float32: biases and log2 a / r."""

    bias_i: Any
    bias_r: Any
    decay_log2: Any


@bundling
def steps_at(steps, batch, time, T, D: tl.constexpr):
    """The steps of a batch entry from ``time`` on, all of them ``Rows``."""
    return Steps(
        *[tensors.at(rows, batch, time, 1) for rows in steps[:5]],
        *[tensors.dense(tensor, batch * T + time, D, 1) for tensor in steps[5:]],
    )


@bundling
def steps_later(steps, count):
    """The steps from ``count`` steps later on."""
    return Steps(*[tensors.later(rows, count) for rows in steps])


@triton.jit
def own_chunk(piece, chunks, T, REDUCE: tl.constexpr, CHUNK: tl.constexpr):
    """(batch, chunk, its first step, steps) of program ``piece`` of B * (chunks, or unless REDUCE chunks + 1)."""
    pieces = chunks if REDUCE else chunks + 1
    chunk = tl.cast(piece % pieces, tl.int64)
    first = chunk * CHUNK
    return tl.cast(piece // pieces, tl.int64), chunk, first, tl.cast(tl.minimum(T - first, CHUNK), tl.int32)


@triton.jit
def decay(a_param, scale=DECAY_LOG2):
    """log2 a = decay(a_param) r, once per channel, <= 0. a_param: any floating dtype; gives float32.

    Of softplus(p) = log(1 + exp(p)) the relative accuracy is kept where exp(p) is far below 1.
    """
    p = a_param.to(tl.float32)
    w = tl.exp(-tl.abs(p))
    # log(1 + w) = 2 artanh(w / (2 + w)), a series in t^2 <= 1/9
    t = w / (2.0 + w)
    s = t * t
    series = 1.0 / 15.0
    series = series * s + 1.0 / 13.0
    series = series * s + 1.0 / 11.0
    series = series * s + 1.0 / 9.0
    series = series * s + 1.0 / 7.0
    series = series * s + 1.0 / 5.0
    series = series * s + 1.0 / 3.0
    series = series * s + 1.0
    return (tl.maximum(p, 0.0) + 2.0 * t * series) * scale


@triton.jit
def one_minus_square(a, log2_a, FAST: tl.constexpr):
    """v = 1 - a^2 without cancellation, float32, >= 0. log2_a <= 0 is the exponent that a came from.

    With u = -2 log a: v = 1 - a^2 where a is well below 1, u - u^2/2 + u^3/6 - ... where it is not.
    """
    if FAST:
        # two lower bounds of v: u - u^2/2, off by u^3/6, and 1 - a^2 less its error; the larger is within 2^-13
        series = log2_a * (log2_a * (-2.0 * LN_2 * LN_2) - 2.0 * LN_2)
        v = tl.maximum(a * -a + (1.0 - MARGIN), series)
    else:
        u = log2_a * (-2.0 * LN_2)
        # (1 - exp(-u)) / u up to u = 1/2, where 1 - a^2 has lost one bit: u^7 / 8! is below half a unit there
        series = 1.0 / 5040.0
        series = series * u - 1.0 / 720.0
        series = series * u + 1.0 / 120.0
        series = series * u - 1.0 / 24.0
        series = series * u + 1.0 / 6.0
        series = series * u - 1.0 / 2.0
        series = series * u + 1.0
        v = tl.where(u < 0.5, u * series, 1.0 - a * a)
    return v


@triton.jit
def load_bias(bias, channels):
    """A gate's bias of a program's channels, zeros where there is none."""
    if bias is None:
        value = tl.zeros(channels.columns.shape, dtype=tl.float32)
    else:
        value = tl.load(bias + channels.columns, mask=channels.inside, other=0.0).to(tl.float32)
    return value


@bundling
def load_gates(parameters, channels):
    """The gates of a program's channels."""
    a_param = tl.load(parameters.a_param + channels.columns, mask=channels.inside, other=0.0)
    return Gates(
        load_bias(parameters.bias_i, channels),
        load_bias(parameters.bias_r, channels),
        decay(a_param, DECAY_LOG2 if parameters.scale is None else parameters.scale),
    )


@triton.jit
def gates_of(z_i, z_r, gates, FAST: tl.constexpr):
    """(i, r, a, v, m) from products x W_i and x W_r; all float32, same shape.

    What is not used is not computed: a caller that takes i, a and m pays for no more. No reset is applied. Arguments
    of the gates are one multiply-add per element.
    """
    if FAST and for_nvidia():
        # sigmoid(z) = (tanh(z / 2) + 1) / 2
        y_i = z_i * 0.5 + gates.bias_i * 0.5
        y_r = z_r * 0.5 + gates.bias_r * 0.5
        t_r = tanh_approx(y_r)
        i = 0.5 * tanh_approx(y_i) + 0.5
        r = 0.5 * t_r + 0.5
        half = 0.5 * gates.decay_log2
        log2_a = half * t_r + half
    else:
        y_i = z_i * -LOG2_E + gates.bias_i * -LOG2_E
        y_r = z_r * -LOG2_E + gates.bias_r * -LOG2_E
        # 1 / p = q / (p q)
        p = 1.0 + exp2(tl.minimum(y_i, LARGEST_EXPONENT))
        q = 1.0 + exp2(tl.minimum(y_r, LARGEST_EXPONENT))
        both = reciprocal(p * q)
        i = q * both
        r = p * both
        log2_a = gates.decay_log2 * r
    a = exp2(log2_a)
    v = one_minus_square(a, log2_a, FAST)
    return i, r, a, v, tl.sqrt(v)


class TileOfSteps(NamedTuple):
    """Some steps and ``Marks``: per field a tuple of rows, or of flags. Backward only: dy, and y of one step before."""

    dy: Any
    x: Any
    y: Any
    z_i: Any
    z_r: Any
    branch: Any
    positions: Any
    enters: Any
    leaves: Any


@bundling
def tile_rows(rows, channels, left, OTHER: tl.constexpr, BLOCK_T: tl.constexpr):
    """Rows of a tile, OTHER from ``left`` on; an empty tuple where there are none."""
    return () if rows is None else tensors.load_rows(rows, channels, left, OTHER, BLOCK_T, True)


@bundling
def tile_flags(positions, marks, left, BLOCK_T: tl.constexpr):
    """(positions, marks that are entered, marks that are left) of a tile, likewise."""
    where = () if positions is None else tensors.load_flags(positions, left, 1, BLOCK_T, True)
    enters = () if marks is None else tensors.load_flags(marks.enter, left, -1, BLOCK_T, True)
    leaves = () if marks is None else tensors.load_flags(marks.leave, left, -1, BLOCK_T, True)
    return where, enters, leaves


@bundling
def load_tile(steps, marks, channels, left, BLOCK_T: tl.constexpr):
    """The tile at the first of ``left`` steps."""
    xs = tile_rows(steps.x, channels, left, 0.0, BLOCK_T)
    zs_i = tile_rows(steps.z_i, channels, left, 0.0, BLOCK_T)
    zs_r = tile_rows(steps.z_r, channels, left, float("-inf"), BLOCK_T)
    others = tile_rows(steps.branch, channels, left, 0.0, BLOCK_T)
    where, enters, leaves = tile_flags(steps.positions, marks, left, BLOCK_T)
    return TileOfSteps((), xs, (), zs_i, zs_r, others, where, enters, leaves)


@triton.jit
def step(tile, u: tl.constexpr, begin, steps, marks, gates, shape):
    """(a, m i x) of row u; at a reset m is 1, a is what it is. ``begin``: steps before the tile, of the sequence or,
    with ``marks``, of any."""
    i, _, a, _, m = gates_of(tile.z_i[u].to(tl.float32), tile.z_r[u].to(tl.float32), gates, shape.fast)
    if steps.positions is not None:
        m = tl.where(tile.positions[u] == 0, 1.0, m)
    elif shape.fresh:
        if marks is not None:
            m = tl.where(tile.enters[u] >= 0, 1.0, m)
        elif u == 0:
            m = tl.where(begin == 0, 1.0, m)
    return a, m * i * tile.x[u].to(tl.float32)


@triton.jit
def scan_rows(steps, marks, gates, carry, channels, before, count, shape, kept=None):
    """The carry [block_d] after ``count`` steps from ``carry`` on, which y and out get; ``before`` come earlier.

    kept: at the first step; where carries are kept.
    """
    if kept is not None:
        places, states, size = kept.places, kept.states, kept.size  # Triton 3.6 forgets an argument's in loops
    if shape.ahead:
        ahead = load_tile(steps, marks, channels, count, shape.block_t)
    for begin in range(0, count, shape.block_t):
        left = count - begin
        y, out = steps.y, steps.out
        if shape.ahead:
            tile = ahead
        else:
            tile = load_tile(steps, marks, channels, left, shape.block_t)
        steps = steps_later(steps, shape.block_t)
        if marks is not None:
            marks = tensors.marks_later(marks, shape.block_t)
        if shape.ahead:
            ahead = load_tile(steps, marks, channels, left - shape.block_t, shape.block_t)
        if kept is not None:
            targets = tensors.load_flags(places, left, -1, shape.block_t, True)
            places = tensors.later(places, shape.block_t)
        for u in tl.static_range(shape.block_t):
            if marks is not None:
                start = tensors.load_state(marks.state, tile.enters[u], channels, tl.float32, tile.enters[u] >= 0)
                carry = tl.where(tile.enters[u] >= 0, start, carry)
            if steps.positions is not None:
                carry = tl.where(tile.positions[u] == 0, 0.0, carry)
            a, value = step(tile, u, before + begin, steps, marks, gates, shape)
            carry = a * carry + value
            if y is not None:
                tensors.store_row(y, u, carry, channels, left, True)
            if out is not None:
                gated = carry * gelu(tile.branch[u].to(tl.float32), shape.fast)
                tensors.store_row(out, u, gated, channels, left, True)
            if marks is not None:
                tensors.store_state(marks.final, tile.leaves[u], carry, channels, tile.leaves[u] >= 0)
            if kept is not None:
                inside = (targets[u] >= 0) & (targets[u] < size)
                tensors.store_state(states, targets[u], carry, channels, inside)
    return carry


@triton.jit
def reduce_rows(steps, marks, gates, channels, before, count, shape):
    """(P, S) [block_d] of ``count`` steps, after ``before``, as one map of the state that enters them, h -> P h + S."""
    p = tl.full(channels.columns.shape, 1.0, dtype=tl.float32)
    s = tl.zeros(channels.columns.shape, dtype=tl.float32)
    for begin in range(0, count, shape.block_t):
        tile = load_tile(steps, marks, channels, count - begin, shape.block_t)
        for u in tl.static_range(shape.block_t):
            if marks is not None:
                start = tensors.load_state(marks.state, tile.enters[u], channels, tl.float32, tile.enters[u] >= 0)
                p = tl.where(tile.enters[u] >= 0, 0.0, p)
                s = tl.where(tile.enters[u] >= 0, start, s)
            if steps.positions is not None:
                p = tl.where(tile.positions[u] == 0, 0.0, p)
                s = tl.where(tile.positions[u] == 0, 0.0, s)
            a, value = step(tile, u, before + begin, steps, marks, gates, shape)
            p = a * p
            s = a * s + value
        steps = steps_later(steps, shape.block_t)
        if marks is not None:
            marks = tensors.marks_later(marks, shape.block_t)
    return p, s
