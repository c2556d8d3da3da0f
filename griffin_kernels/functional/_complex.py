"""The public recurrences over complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.contract import accumulator, dtype_name
from griffin_kernels.functional._bridge import offsets, registered, whole
from griffin_kernels.functional._common import RGLRUWeights, autocast, beside, checked, documented, in_dtype
from griffin_kernels.ops.rg_lru.op import DECAY, MAX_SQRT_GRADIENT, resets

_complex_scan: Callable[..., tuple[Tensor, Tensor]] = registered("complex_scan")


@documented((2e-7, 5e-3, 3e-4), (2e-7, 5e-3, 3e-4))
def complex_scan(
    x: Tensor,
    a: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The linear recurrence h_t = a_t h_{t-1} + x_t over complex numbers, each a pair of reals.

    Pairs are what ``torch.view_as_real`` makes of a complex tensor; ``linear_scan`` takes complex tensors themselves.
    x: [B, T, D, 2], real and imaginary parts, float32, bfloat16, float16 or float64; any strides, best with the two
        parts of a number side by side.
    a: [B, T, D, 2], or [D, 2] or with sizes of 1 for gates that are the same in every step or row; in x's dtype, or
        float32 beside 16-bit x, which is then widened first. Any angle and modulus: forms that cut time are slower
        where |a| > 1, since they then go step by step.
    h0: [B, D, 2], the state before the first step, in x's dtype or float32; zeros if None.

    Returns h [B, T, D, 2] in x's dtype and h_last [B, D, 2], the last state in float32 (float64 for float64).
    Autocast changes no dtype here. Differentiable in x, a and h0, from h and h_last. Gradients are those of the reals
    in the pairs, which are PyTorch's of complex tensors too: da_t = g_t conj(h_{t-1}).

    Numerics: products, sums and the carry are float32 (float64 for float64 data) in every variant. bfloat16 and
    float16 are rounded once, when h is written, and dx and da when they are; da uses h as returned.
    """
    if isinstance(x, Tensor) and isinstance(a, Tensor):
        if a.shape != x.shape and _stands_for(a, x):
            a = a.expand_as(x)
        if x.dtype in (torch.bfloat16, torch.float16) and a.dtype == torch.float32:
            states = h0.float() if isinstance(h0, Tensor) and h0.dtype == x.dtype else h0
            h, last = _complex_scan(x.float(), a, states, reset, offsets(cu_seqlens), reverse)
            return h.to(x.dtype), last
    return _complex_scan(x, a, h0, reset, offsets(cu_seqlens), reverse)


def _stands_for(a: Tensor, x: Tensor) -> bool:
    """Whether a holds pairs that are the same for several of x's."""
    sizes = zip(reversed(a.shape[:-1]), reversed(x.shape[:-1]), strict=False)
    pairs = 2 <= a.dim() <= x.dim() and a.shape[-1] == x.shape[-1] == 2
    return pairs and all(mine in (1, theirs) for mine, theirs in sizes)


def of_numbers(
    x: Tensor, a: Tensor, h0: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """``linear_scan`` of complex tensors: h and h_last have x's dtype. DtypeError where not all have."""
    if x.dtype not in (torch.complex64, torch.complex128):
        known = "complex64 and complex128 are the complex dtypes that it has"
        raise errors.DtypeError(f"linear_scan: x is {dtype_name(x.dtype)}: {known}")

    def pairs(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dtype != x.dtype:
            known = f"expected {dtype_name(x.dtype)} as x is"
            raise errors.DtypeError(f"linear_scan: {name} is {dtype_name(value.dtype)}, {known}")
        return torch.view_as_real(value.resolve_conj())

    options: dict[str, Any] = {"h0": pairs("h0", h0), "reset": reset, "cu_seqlens": cu_seqlens, "reverse": reverse}
    h, last = complex_scan(pairs("x", x), pairs("a", a), **options)
    return torch.view_as_complex(h), torch.view_as_complex(last)


@documented((2e-7, 5e-3, 3e-4), (2e-7, 5e-3, 3e-4))
def complex_rg_lru(
    x: Tensor,
    weights: RGLRUWeights,
    a_imag_param: Tensor,
    *,
    h0: Tensor | None = None,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The complex-gated linear recurrent unit of Griffin's appendix B: an RG-LRU whose channels are complex numbers.

        i = sigmoid(x W_i + b_i),  r = sigmoid(x W_r + b_r),  log a = (-8 softplus(a_param) + i a_imag_param) r
        h_t = a_t h_{t-1} + sqrt(1 - |a_t|^2) i_t x_t

    where the i before a_imag_param is the imaginary unit, and x_t in the last line is complex. Source: arXiv
    2402.19427, appendix B; google-deepmind/recurrentgemma 1.0.1, jax/layers.py, ``RGLRU(only_real=False)``.
    x: [B, T, D], D even, float32, bfloat16, float16 or float64: real parts of D/2 numbers, then their imaginary parts.
        The gates see all D reals.
    weights: RGLRUWeights of D/2 numbers: a_param [D/2]; matrices [H, n, n/2], n = D / H; biases [H, n/2].
    a_imag_param: [D/2], the angle of a at r = 1, in radians.
    h0: [B, D], the state before the first step as x is laid out, in x's dtype or float32; None for a fresh sequence.
    segment_pos: int64 or int32 [B, T], each token's position in its document. Where it is 0 a document begins: the
        earlier state counts as 0 and sqrt(1 - |a|^2) as 1. Without it, so it is at each first step if h0 is None.

    Returns y = h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64), both laid
    out as x is. Differentiable in x, all weights, a_imag_param and h0; the square root's derivative is clipped at 1000,
    as published.

    Numerics: the gates' arguments are rounded to x's dtype, whatever follows them is float32 (float64 for float64), and
    y is rounded once. Its pieces run one by one, gates in PyTorch, so that memory holds them all for the gradient.
    """
    if (dtype := autocast(x)) is not None:
        (x,) = in_dtype(dtype, x)
    parameters = (*checked("complex_rg_lru", weights, x), *beside(x, a_imag_param))
    call = _ComplexCall(*(x, *parameters, h0, whole(segment_pos)))
    _check_complex_rg_lru(call)
    wide, half = accumulator(x.dtype), x.shape[2] // 2
    blocks = x.reshape(*x.shape[:2], *call.input_weight.shape[:2])  # [B, T, H, n]

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        products = torch.einsum("bthk,hkj->bthj", blocks, weight).to(wide)
        return torch.sigmoid(products + bias.to(wide)).flatten(2)  # [B, T, D/2]

    i, r = gate(call.input_weight, call.input_bias), gate(call.recurrence_weight, call.recurrence_bias)
    log_modulus = r * (-DECAY * torch.nn.functional.softplus(call.a_param.to(wide)))
    angle, modulus = r * call.a_imag_param.to(wide), torch.exp(log_modulus)
    a = torch.stack((modulus * torch.cos(angle), modulus * torch.sin(angle)), dim=-1)
    multiplier = _clipped_sqrt(-torch.expm1(2 * log_modulus))
    packed = offsets(cu_seqlens)
    begins = resets(_Beginnings(x, h0, call.segment_pos, packed))
    if begins is not None:
        multiplier = torch.where(begins[..., None], 1.0, multiplier)
    values = torch.stack((x[..., :half], x[..., half:]), dim=-1).to(wide) * (multiplier * i)[..., None]
    reset = None if call.segment_pos is None else call.segment_pos == 0
    state = None if h0 is None else torch.stack((h0[:, :half], h0[:, half:]), dim=-1)
    y, last = complex_scan(values, a, h0=state, reset=reset, cu_seqlens=packed)
    return y.transpose(2, 3).flatten(2).to(x.dtype), last.transpose(1, 2).flatten(1)


class _ComplexCall(NamedTuple):
    """The arguments of complex_rg_lru but for the offsets."""

    x: Any
    a_param: Any
    input_weight: Any
    input_bias: Any
    recurrence_weight: Any
    recurrence_bias: Any
    a_imag_param: Any
    h0: Any
    segment_pos: Any


class _Beginnings(NamedTuple):
    """What ``resets`` looks at."""

    x: Tensor
    h0: Tensor | None
    segment_pos: Tensor | None
    cu_seqlens: Tensor | None


def _check_complex_rg_lru(call: _ComplexCall) -> None:
    """Raise ArgumentError, DtypeError or ShapeError naming the argument; the rows of h0 are the scan's to check."""
    for name, value in call._asdict().items():
        if not isinstance(value, Tensor) and (value is not None or name not in ("h0", "segment_pos")):
            raise errors.ArgumentError(f"complex_rg_lru: {name} is a {type(value).__name__}, expected a tensor")
    if call.x.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise errors.DtypeError(f"complex_rg_lru: x is {dtype_name(call.x.dtype)}, expected a real floating dtype")
    if call.x.dim() != 3 or call.x.shape[2] % 2:
        raise errors.ShapeError(f"complex_rg_lru: x has shape {list(call.x.shape)}, expected [B, T, D] with an even D")
    batch, time, width = call.x.shape
    if call.input_weight.dim() != 3:
        raise errors.ShapeError(
            f"complex_rg_lru: input_gate_weight has shape {list(call.input_weight.shape)}, expected [H, n, n/2]"
        )
    heads = call.input_weight.shape[0]
    n = width // max(heads, 1)
    expected = {
        "input_weight": (heads, n, n // 2),
        "recurrence_weight": (heads, n, n // 2),
        "input_bias": (heads, n // 2),
        "recurrence_bias": (heads, n // 2),
        "a_param": (width // 2,),
        "a_imag_param": (width // 2,),
        "segment_pos": (batch, time),
    }
    if heads * (n // 2) * 2 != width:
        raise errors.ShapeError(f"complex_rg_lru: input_gate_weight has {heads} blocks, which do not halve D={width}")
    for name, shape in expected.items():
        value = getattr(call, name)
        if value is not None and tuple(value.shape) != shape:
            named = name.replace("_weight", "_gate_weight").replace("_bias", "_gate_bias")
            raise errors.ShapeError(f"complex_rg_lru: {named} has shape {list(value.shape)}, expected {list(shape)}")
    if call.h0 is not None and (call.h0.dim() != 2 or call.h0.shape[1] != width):
        raise errors.ShapeError(f"complex_rg_lru: h0 has shape {list(call.h0.shape)}, expected [N, D={width}]")


def _clipped_sqrt(v: Tensor) -> Tensor:
    """sqrt(v), v >= 0, with a derivative of at most MAX_SQRT_GRADIENT."""
    least = 1 / (2 * MAX_SQRT_GRADIENT) ** 2
    straight = torch.sqrt(v.detach()) + MAX_SQRT_GRADIENT * (v - v.detach())
    return torch.where(v > least, torch.sqrt(v.clamp_min(least)), straight)
