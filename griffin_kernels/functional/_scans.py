"""The public scans."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from griffin_kernels.functional import _complex
from griffin_kernels.functional._bridge import offsets, registered
from griffin_kernels.functional._common import documented

_linear_scan: Callable[..., tuple[Tensor, Tensor]] = registered("linear_scan")
_block_diagonal_scan: Callable[..., tuple[Tensor, Tensor]] = registered("block_diagonal_scan")


@documented((2e-7, 5e-3, 3e-4), (2e-7, 5e-3, 3e-4))
def linear_scan(
    x: Tensor,
    a: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gated linear recurrence h_t = a_t * h_{t-1} + x_t, per channel.

    Source: RG-LRU's recurrence, arXiv 2402.19427, equation 4, without its gates.
    x, a: [B, T, D], float32, bfloat16, float16 or float64, the same dtype; any strides. a may have any sign and size;
        forms that cut time are slower where |a| > 1, since they then go step by step. Complex x, a and h0, complex64 or
        complex128 alike, give complex h and h_last; see complex_scan.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). The carry is
    kept in float32 or better throughout. Differentiable in x, a and h0, from h and h_last; gradients of a use h as
    returned, rounded to its dtype.

    Numerics: products, sums and the carry are float32 (float64 for float64 data) in every variant. bfloat16 and
    float16 are rounded once, when h is written, and dx and da when they are.
    """
    if isinstance(x, Tensor) and x.is_complex():
        return _complex.of_numbers(x, a, h0, reset, cu_seqlens, reverse)
    return _linear_scan(x, a, h0, reset, offsets(cu_seqlens), reverse)


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
        n = 2, 4, 8 and 16 have kernels of their own; n = 1 runs linear_scan; any other n works.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). Differentiable
    in x, a and h0, from h and h_last.

    Numerics: products, sums over k and the carry are float32 (float64 for float64 data); chunked kernels keep
    products of matrices in it too. bfloat16 and float16 are rounded once, when h is written, and dx and da when
    they are; the gradient of a multiplies by h as returned. Nothing keeps products of A from growing: it is for the
    caller to keep singular values at or below 1.
    """
    if isinstance(x, Tensor) and isinstance(a, Tensor) and a.shape == (*x.shape, 1, 1):
        return linear_scan(x, a[..., 0, 0], h0=h0, reset=reset, cu_seqlens=cu_seqlens, reverse=reverse)
    return _block_diagonal_scan(x, a, h0, reset, offsets(cu_seqlens), reverse)
