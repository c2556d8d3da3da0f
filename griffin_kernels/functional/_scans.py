"""The public scans."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.functional import _complex
from griffin_kernels.functional._bridge import offsets, registered, whole
from griffin_kernels.functional._common import autocast, beside, documented, gates_beside, in_dtype, one_of

_linear_scan: Callable[..., tuple[Tensor, Tensor, Tensor | None]] = registered("linear_scan")
_block_diagonal_scan: Callable[..., tuple[Tensor, Tensor]] = registered("block_diagonal_scan")
_linear_scan_step: Callable[..., Tensor] = registered("linear_scan_step")


@documented((2e-7, 5e-3, 3e-4), (2e-7, 5e-3, 3e-4))
def linear_scan(
    x: Tensor,
    a: Tensor | None = None,
    *,
    log_a: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    convex: bool = False,
    return_a_prod: bool = False,
) -> tuple[Tensor, ...]:
    """The gated linear recurrence h_t = a_t * h_{t-1} + x_t, per channel.

    Source: RG-LRU's recurrence, arXiv 2402.19427, equation 4, without its gates.
    x: [B, T, D], float32, bfloat16, float16 or float64; any strides. Under autocast it is cast as nn.Linear casts it.
        Complex x, a and h0, complex64 or complex128 alike, give complex h and h_last without options; see complex_scan.
    a: [B, T, D], or the same gate at all steps: [D], [1, 1, D], or [B, 1, D] where rows differ. In x's dtype or
        float32, in which any other is used. It may have any sign and size; forms that cut time are slower where
        |a| > 1, since they then go step by step.
    log_a: in place of a, its logarithm: a = exp(log_a) in float32, and the gradient is that of log_a. Minus infinity
        is a gate of 0.
    convex: h_t = a_t * h_{t-1} + (1 - a_t) * x_t, as in SRU, QRNN, minGRU and HGRN; 1 - a is -expm1(log_a) of log_a.
    return_a_prod: give the product of each sequence's gates too.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64); with
    return_a_prod also a_prod [B, D] like h_last: what h_last is to h0, 0 where a reset lies between, 1 without steps.
    The carry is kept in float32 or better throughout. Differentiable in x, a or log_a, and h0, from all of them;
    gradients of a use h as returned, rounded to its dtype, and those of a gate of many steps are summed in float32.

    Numerics: products, sums and the carry are float32 (float64 for float64 data) in every variant. bfloat16 and
    float16 are rounded once, when h is written, and dx and da when they are.
    """
    gates = one_of("linear_scan", a, log_a)
    if isinstance(x, Tensor) and x.is_complex():
        options = {"log_a": a is None, "convex": convex, "return_a_prod": return_a_prod}
        if given := [name for name, value in options.items() if value]:
            raise errors.ArgumentError(f"linear_scan: {given[0]} has no form for complex x, expected a alone")
        return _complex.of_numbers(x, gates, h0, reset, cu_seqlens, reverse)
    if (dtype := autocast(x)) is not None:
        (x,) = in_dtype(dtype, x)
    gates = gates_beside(x, gates)
    h, h_last, a_prod = _linear_scan(
        x, gates, h0, reset, offsets(cu_seqlens), reverse, a is None, convex, return_a_prod
    )
    return (h, h_last, a_prod) if return_a_prod and a_prod is not None else (h, h_last)


@documented((4e-7, 5e-3, 3e-4), (4e-7, 5e-3, 3e-4))
def block_diagonal_scan(
    x: Tensor,
    a: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The linear recurrence h_t = A_t h_{t-1} + x_t with A_t made of H blocks of n x n on its diagonal.

    x: [B, T, D] with D = H n, float32, bfloat16, float16 or float64; any strides. Channel i n + j is entry j of
        block i.
    a: [B, T, H, n, n] in x's dtype. The state of a block is a column vector: h_j = sum_k a[..., j, k] h_k + x_j.
        Kernels that cut time multiply up to 256 matrices of a chunk with each other: products that leave float32 lose
        it where the state does not. Matrices that shrink vectors, or keep their length, are safe.
        n = 2, 4, 8 and 16 have kernels of their own; any other n works. n = 1 runs linear_scan: a may then be float32
        beside 16-bit x, or the same at all steps, [D, 1, 1], [1, 1, D, 1, 1] or [B, 1, D, 1, 1]. Larger matrices that
        all steps share are to be expanded to all of them, and are read at each.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). Differentiable
    in x, a and h0, from h and h_last.

    Numerics: products, sums over k and the carry are float32 (float64 for float64 data); chunked kernels keep
    products of matrices in it too. bfloat16 and float16 are rounded once, when h is written, and dx and da when
    they are; the gradient of a multiplies by h as returned. Nothing keeps products of A from growing: it is for the
    caller to keep singular values at or below 1.
    """
    if isinstance(x, Tensor) and isinstance(a, Tensor):
        gates = a[..., 0, 0] if a.shape == (*x.shape, 1, 1) else None
        if a.shape[:-3] != x.shape[:-1]:
            gates = _of_all_steps(x, a)
        if gates is not None:
            h, h_last, _ = _linear_scan(x, gates, h0, reset, offsets(cu_seqlens), reverse, False, False, False)
            return h, h_last
    return _block_diagonal_scan(x, a, h0, reset, offsets(cu_seqlens), reverse)


def _of_all_steps(x: Tensor, a: Tensor) -> Tensor | None:
    """Matrices that all steps share as linear_scan's gates, where blocks are of one channel; None if they are others.

    ShapeError where blocks are larger.
    """
    lead = a.shape[:-3]
    if x.ndim != 3 or a.ndim not in (3, 5) or a.shape[-1] != a.shape[-2] or lead not in ((), (1, 1), (x.shape[0], 1)):
        return None
    if a.shape[-3:] == (x.shape[2], 1, 1):
        return a.reshape(*(lead or (1, 1)), x.shape[2])
    given, wanted = list(a.shape), [*x.shape[:2], *a.shape[-3:]]
    raise errors.ShapeError(
        f"block_diagonal_scan: a has shape {given}, matrices of all steps, expected {wanted}: a.expand{(*wanted,)}"
    )


@documented((1e-7, 2e-3, 3e-4))
def linear_scan_step(
    x: Tensor,
    a: Tensor | None = None,
    h: Tensor | None = None,
    *,
    log_a: Tensor | None = None,
    reset: Tensor | None = None,
    slots: Tensor | None = None,
    dst_slots: Tensor | None = None,
    pad_slot: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    """One token of ``linear_scan``, h = a h + x; the state ``h`` is changed in place.

    x: [B, D], float32, bfloat16, float16 or float64; any strides. h: [P, D], float32 (float64 for float64).
    a: [B, D], in x's dtype or float32, in which any other is used; of any sign and size.
    log_a: in place of a, its logarithm: a = exp(log_a) in float32 (float64 for float64).
    reset: bool [B]; where True a sequence begins: the state becomes x, and neither a nor h is read.

    Returns y [B, D], the new states rounded to x's dtype. The state is float32 or better.

    Numerics: product, sum and exponential are float32 (float64 for float64 data); y is h rounded once.
    """
    if log_a is not None and a is not None:
        raise errors.ArgumentError("linear_scan_step: a and log_a are both given, expected one of them")
    if (dtype := autocast(x)) is not None:
        (x,) = in_dtype(dtype, x)
    (gates,), rows = beside(x, a if log_a is None else log_a), (whole(slots), whole(dst_slots))
    return _linear_scan_step(x, gates, h, reset, *rows, log_a is not None, pad_slot, out)
