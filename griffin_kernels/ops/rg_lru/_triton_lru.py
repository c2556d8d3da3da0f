"""Device functions that rg_lru's Triton kernels share, forward and backward: gates, decay, multiplier.

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
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.elementwise import (
    LARGEST_EXPONENT,
    LN_2,
    LOG2_E,
    exp2,
    for_nvidia,
    reciprocal,
    tanh_approx,
)
from griffin_kernels.ops._triton.tensors import at, dense, later
from griffin_kernels.ops.rg_lru.op import DECAY

DECAY_LOG2 = tl.constexpr(-DECAY * 1.4426950408889634)
# 1 - a^2 is off by up to 2^-21 through a's own error; less this margin it is below the true value
MARGIN = tl.constexpr(2.0**-20)


class Steps(NamedTuple):
    """What a scan reads and writes step by step, or None: ``Rows`` of x, of a branch and of positions [B,T]; its gate
    products z_i, z_r where they are given, y for the states and out for them times gelu(branch), [B,T,D] contiguous.
    """

    x: Any
    branch: Any
    positions: Any
    z_i: Any
    z_r: Any
    y: Any
    out: Any


class Parameters(NamedTuple):
    """a_param [D], biases [H,n], and weights [H,n,n] unless their products are given; contiguous."""

    a_param: Any
    weight_i: Any
    bias_i: Any
    weight_r: Any
    bias_r: Any


class Gates(NamedTuple):
    """What gates of a tile's channels take besides products, float32: biases and log2 a / r."""

    bias_i: Any
    bias_r: Any
    decay_log2: Any


@bundling
def steps_at(steps, batch, time, T, D: tl.constexpr):
    """The steps of a batch entry from ``time`` on, all of them ``Rows``."""
    return Steps(
        *[at(rows, batch, time, 1) for rows in steps[:3]],
        *[dense(tensor, batch * T + time, D, 1) for tensor in steps[3:]],
    )


@bundling
def steps_later(steps, count):
    """The steps from ``count`` steps later on."""
    return Steps(*[later(rows, count) for rows in steps])


@triton.jit
def own_chunk(piece, chunks, T, REDUCE: tl.constexpr, CHUNK: tl.constexpr):
    """(batch, chunk, its first step, steps) of program ``piece`` of B * (chunks, or unless REDUCE chunks + 1)."""
    pieces = chunks if REDUCE else chunks + 1
    chunk = tl.cast(piece % pieces, tl.int64)
    first = chunk * CHUNK
    return tl.cast(piece // pieces, tl.int64), chunk, first, tl.cast(tl.minimum(T - first, CHUNK), tl.int32)


@triton.jit
def softplus(p):
    """log(1 + exp(p)) in float32, with its relative accuracy kept where exp(p) is far below 1."""
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
    return tl.maximum(p, 0.0) + 2.0 * t * series


@triton.jit
def decay(a_param):
    """log2 a = decay(a_param) r, once per channel. a_param: any floating dtype; gives float32, <= 0."""
    return softplus(a_param.to(tl.float32)) * DECAY_LOG2


@triton.jit
def argument(product, bias, FAST: tl.constexpr):
    """What ``scaled_gates`` takes for the gate sigmoid(product + bias), by one multiply-add per element."""
    if FAST and for_nvidia():
        y = product * 0.5 + bias * 0.5
    else:
        y = product * -LOG2_E + bias * -LOG2_E
    return y


@triton.jit
def scaled_gates(y_i, y_r, decay_log2, FAST: tl.constexpr):
    """(i, r, a, v, m) from ``argument`` of both gates and ``decay(a_param)``; all float32, same shape.

    What is not used is not computed: a caller that takes i, a and m pays for no more. No reset is applied.
    """
    if FAST and for_nvidia():
        # sigmoid(z) = (tanh(z / 2) + 1) / 2
        t_r = tanh_approx(y_r)
        i = 0.5 * tanh_approx(y_i) + 0.5
        r = 0.5 * t_r + 0.5
        half = 0.5 * decay_log2
        log2_a = half * t_r + half
    else:
        # 1 / p = q / (p q)
        p = 1.0 + exp2(tl.minimum(y_i, LARGEST_EXPONENT))
        q = 1.0 + exp2(tl.minimum(y_r, LARGEST_EXPONENT))
        both = reciprocal(p * q)
        i = q * both
        r = p * both
        log2_a = decay_log2 * r
    a = exp2(log2_a)
    v = one_minus_square(a, log2_a, FAST)
    return i, r, a, v, tl.sqrt(v)


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


@bundling
def load_gates(parameters, channels):
    """The gates of a program's channels."""
    return Gates(
        tl.load(parameters.bias_i + channels.columns, mask=channels.inside, other=0.0).to(tl.float32),
        tl.load(parameters.bias_r + channels.columns, mask=channels.inside, other=0.0).to(tl.float32),
        decay(tl.load(parameters.a_param + channels.columns, mask=channels.inside, other=0.0)),
    )


@triton.jit
def gates_of(z_i, z_r, gates, FAST: tl.constexpr):
    """``scaled_gates`` of products x W_i and x W_r, float32."""
    y_i = argument(z_i, gates.bias_i, FAST)
    y_r = argument(z_r, gates.bias_r, FAST)
    return scaled_gates(y_i, y_r, gates.decay_log2, FAST)
