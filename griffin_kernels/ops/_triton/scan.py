"""Device functions that the Triton scans share: where a program works, rows ahead of the scan, states.

Time is visited in steps 0, 1, ... of a *span*; ``reverse`` only makes the row strides negative, so no kernel copies or
flips. Channel strides are compile-time constants, which lets the compiler see that neighbouring channels are neighbours
in memory, and so are the row strides of adjacent rows, which makes row offsets immediates; see ops/_triton/strides.py.
Bases are 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.gating import gate_of
from griffin_kernels.ops._triton.tensors import later

AGAIN = tl.constexpr(8)
"""Rows loaded ahead where channels are done again: few, for the registers of all that comes before."""


@triton.jit
def span(row, cu_seqlens, T, REVERSE: tl.constexpr):
    """(batch, time of step 0, steps) of row ``row`` of h0: a batch entry, or a packed sequence."""
    if cu_seqlens is None:
        batch = tl.cast(row, tl.int64)
        begin = tl.cast(0, tl.int64)
        end = tl.cast(T, tl.int64)
    else:
        batch = tl.cast(0, tl.int64)
        begin = tl.cast(tl.load(cu_seqlens + row), tl.int64)
        end = tl.cast(tl.load(cu_seqlens + row + 1), tl.int64)
    first = begin
    if REVERSE:
        first = end - 1
    return batch, first, tl.cast(end - begin, tl.int32)


@triton.jit
def combine(a_first, x_first, a_then, x_then):
    """Two affine maps s -> a s + x, one after the other."""
    return a_first * a_then, a_then * x_first + x_then


@triton.jit
def combine_cut(a_first, x_first, a_then, x_then):
    """Likewise, but of a map with a = 0, a reset, nothing before it counts: not even NaN, of which 0 * NaN is made."""
    stop = a_then == 0.0
    both, after = combine(a_first, x_first, a_then, x_then)
    return tl.where(stop, a_then, both), tl.where(stop, x_then, after)


@triton.jit
def complex_product(p, q, CONJUGATE: tl.constexpr):
    """p, flat or [held, 2], or its conjugate, times q [held, 2]."""
    p_real, p_imaginary = tl.split(tl.reshape(p, q.shape).to(q.dtype))
    q_real, q_imaginary = tl.split(q)
    if CONJUGATE:
        p_imaginary = -p_imaginary
    return tl.join(p_real * q_real - p_imaginary * q_imaginary, p_real * q_imaginary + p_imaginary * q_real)


@triton.jit
def gates_times(a, state, PAIRS: tl.constexpr, CONJUGATE: tl.constexpr):
    """Gates times a state, both [block_d]; with PAIRS of complex numbers, or of the conjugates of a."""
    if PAIRS:
        pairs = tl.reshape(state, (state.shape[0] // 2, 2))
        product = tl.reshape(complex_product(a, pairs, CONJUGATE), state.shape)
    else:
        product = a * state
    return product


@triton.jit
def beyond_one(a, channels, steps, ACC: tl.constexpr, gating=None):
    """[block_d] bool: channels of which one of ``steps`` gates is finite and not in [-1, 1].

    Products of such gates may overflow where the state does not, or underflow and grow again: a form that multiplies
    gates does those channels again, step by step. NaN and infinity must not change how the other steps are computed.
    """
    found = tl.zeros(channels.columns.shape, dtype=tl.int32)
    for _ in range(steps):
        loaded = tl.load(a.at + channels.columns * a.channel, mask=channels.inside, other=0.0)
        size = tl.abs(gate_of(loaded, gating, ACC).to(ACC))
        found |= ((size > 1.0) & (size < float("inf"))).to(tl.int32)
        a = later(a, 1)
    return channels.inside & (found != 0)


@triton.jit
def last_row(tile, rows, BLOCK_T: tl.constexpr):
    """Row BLOCK_T - 1 of a tile [block_t, block_d] as [block_d]."""
    return tl.sum(tl.where(rows[:, None] == BLOCK_T - 1, tile, 0.0), axis=0)


@triton.jit
def grow(weights, gate, COUNT: tl.constexpr):
    """The tuple of COUNT weights, each [block_d], multiplied by one more gate."""
    grown = ()
    for s in tl.static_range(COUNT):
        grown += (weights[s] * gate,)
    return grown
