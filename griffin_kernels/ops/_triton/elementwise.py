"""Special functions of Triton kernels, float32: what the hardware gives, and gelu."""

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops import _gelu

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# sigmoid(-42) = 6e-19 stands for all below it: two such denominators still multiply to a finite float32
LARGEST_EXPONENT = tl.constexpr(60.0)
GELU_SCALE = tl.constexpr(_gelu.SCALE)
GELU_CUBIC = tl.constexpr(_gelu.CUBIC)


def for_nvidia(_semantic=None):
    """Whether the kernel is being compiled for an NVIDIA GPU, present or not; in the interpreter it is not."""
    return tl.constexpr(_semantic is not None and _semantic.builder.options.backend_name == "cuda")


for_nvidia.__triton_builtin__ = True  # type: ignore[attr-defined]  # the compiler then passes _semantic


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
def gelu(z, FAST: tl.constexpr):
    """z times the normal distribution function, in its tanh form: z sigmoid(2 sqrt(2 / pi) (z + 0.044715 z^3)).

    float32; two special functions, or with ``fast`` on NVIDIA one.
    """
    y = z * (GELU_SCALE + GELU_CUBIC * GELU_SCALE * z * z)
    if FAST and for_nvidia():
        half = 0.5 * z
        value = half * tanh_approx(y) + half
    else:
        value = z * reciprocal(1.0 + exp2(tl.minimum(y * (-2.0 * LOG2_E), LARGEST_EXPONENT)))
    return value


@triton.jit
def gelu_and_slope(z):
    """(gelu, its derivative): z q and q + z q', with q = sigmoid(2 sqrt(2 / pi) (z + 0.044715 z^3))."""
    square = z * z
    y = z * (GELU_SCALE + GELU_CUBIC * GELU_SCALE * square)
    q = reciprocal(1.0 + exp2(tl.minimum(y * (-2.0 * LOG2_E), LARGEST_EXPONENT)))
    slope = GELU_SCALE + 3.0 * GELU_CUBIC * GELU_SCALE * square
    value = z * q
    return value, q + 2.0 * value * (1.0 - q) * slope
