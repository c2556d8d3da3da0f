"""The public block_diagonal_scan: a differentiable operator over the tuned kernels."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.functional import _bridge
from griffin_kernels.functional.linear_scan import linear_scan

_block_diagonal_scan = _bridge.Differentiable("block_diagonal_scan")


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
    h0: [B, D], the state before the first step, in x's dtype or float32; zeros if None.
    reset: bool [B, T]; where True the state before that step counts as 0.
    cu_seqlens: int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one; h0 and h_last are then [N, D].
        On a GPU its values are not checked: that would wait for the device.
    reverse: run from the last step to the first; h0 enters at the end, h_last is the state at the start.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). Differentiable
    in x, a and h0, from h and h_last. T = 0 and B = 0 give empty outputs (h_last is then h0).

    Numerics: products, sums over k and the carry are float32 (float64 for float64 data); chunked kernels keep
    products of matrices in it too. bfloat16 and float16 are rounded once, when h is written, and dx and da when
    they are; the gradient of a multiplies by h as returned. Nothing keeps products of A from growing: it is for the
    caller to keep singular values at or below 1. Error against float64, the worst variant on normal inputs, as norm
    of the error over norm of the result: float32 4e-07, bfloat16 5e-03, float16 3e-04; of gradients float32 4e-07,
    bfloat16 5e-03, float16 3e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
    """
    if isinstance(x, Tensor) and isinstance(a, Tensor) and a.shape == (*x.shape, 1, 1):
        return linear_scan(x, a[..., 0, 0], h0=h0, reset=reset, cu_seqlens=cu_seqlens, reverse=reverse)
    outputs: tuple[Tensor, Tensor] = _block_diagonal_scan(x, a, h0, reset, cu_seqlens, reverse)
    return outputs
