"""Device functions that rg_lru's Triton kernels share, forward and backward: gates, decay, multiplier, gelu.

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

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops.rg_lru.op import DECAY

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
DECAY_LOG2 = tl.constexpr(-DECAY * 1.4426950408889634)
# sigmoid(-42) = 6e-19 stands for all below it: two such denominators still multiply to a finite float32
LARGEST_EXPONENT = tl.constexpr(60.0)
# 1 - a^2 is off by up to 2^-21 through a's own error; less this margin it is below the true value
MARGIN = tl.constexpr(2.0**-20)


def for_nvidia(_semantic=None):
    """Whether the kernel is being compiled for an NVIDIA GPU, present or not; in the interpreter it is not."""
    return tl.constexpr(_semantic is not None and _semantic.builder.options.backend_name == "cuda")


for_nvidia.__triton_builtin__ = True  # type: ignore[attr-defined]  # the compiler then passes _semantic


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
def exp2(y):
    """2^y for float32, relative error 2^-22; 0 below y = -126, which the plain form scales for."""
    if for_nvidia():
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1)
    return tl.exp2(y)


@triton.jit
def reciprocal(y):
    """1 / y for normal float32, off by one unit; the plain form allows for y beyond 2^126."""
    if for_nvidia():
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1)
    return 1.0 / y


@triton.jit
def tanh_approx(y):
    """tanh(y), relative error 2^-11, one instruction. NVIDIA from sm_75 on."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1)


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


@triton.jit
def gates(z_i, z_r, decay_log2, FAST: tl.constexpr):
    """``scaled_gates`` of the gates' arguments, biases added: i = sigmoid(z_i), r = sigmoid(z_r)."""
    return scaled_gates(argument(z_i, 0.0, FAST), argument(z_r, 0.0, FAST), decay_log2, FAST)


@triton.jit
def gelu(z, FAST: tl.constexpr):
    """z times the normal distribution function, in its tanh form: z sigmoid(2 sqrt(2 / pi) (z + 0.044715 z^3)).

    float32; two special functions, or with ``fast`` on NVIDIA one.
    """
    y = z * (0.7978845608028654 + 0.035677408136300125 * z * z)  # sqrt(2 / pi) (z + 0.044715 z^3)
    if FAST and for_nvidia():
        half = 0.5 * z
        value = half * tanh_approx(y) + half
    else:
        value = z * reciprocal(1.0 + exp2(tl.minimum(y * (-2.0 * LOG2_E), LARGEST_EXPONENT)))
    return value
