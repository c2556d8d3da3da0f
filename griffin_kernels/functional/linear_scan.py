"""The public linear_scan: a differentiable operator over the tuned kernels."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.functional import _bridge

_linear_scan = _bridge.Differentiable("linear_scan")


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

    x, a: [B, T, D], float32, bfloat16, float16 or float64, the same dtype; any strides. a may have any sign and size;
        forms that cut time are slower where |a| > 1, since they then go step by step.
    h0: [B, D], the state before the first step, in x's dtype or float32; zeros if None.
    reset: bool [B, T]; where True the state before that step counts as 0.
    cu_seqlens: int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one; h0 and h_last are then [N, D].
        On a GPU its values are not checked: that would wait for the device.
    reverse: run from the last step to the first; h0 enters at the end, h_last is the state at the start.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). The carry is
    kept in float32 or better throughout. Differentiable in x, a and h0, from h and h_last; gradients of a use h as
    returned, rounded to its dtype. T = 0 and B = 0 give empty outputs (h_last is then h0).

    Numerics: products, sums and the carry are float32 (float64 for float64 data) in every variant. bfloat16 and
    float16 are rounded once, when h is written, and dx and da when they are; the gradient of a multiplies by h as
    returned. Error against float64, the worst variant on normal inputs, as norm of the error over norm of the
    result: float32 2e-07, bfloat16 5e-03, float16 3e-04; of gradients float32 2e-07, bfloat16 5e-03, float16 3e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
    Source: RG-LRU's recurrence, arXiv 2402.19427, equation 4, without its gates.
    """
    outputs: tuple[Tensor, Tensor] = _linear_scan(x, a, h0, reset, cu_seqlens, reverse)
    return outputs
