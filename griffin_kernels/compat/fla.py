"""HGRN's functions of flash-linear-attention, ``from griffin_kernels.compat.fla import fused_recurrent_hgrn``.

    h_t = exp(g_t) h_{t-1} + x_t                     x is (1 - f) times the input already, where f = exp(g)

Both run the kernel that ``linear_scan`` finds fastest; they differ in what they take and in the final state's dtype, as
there. Source: github.com/fla-org/flash-linear-attention, fla/ops/hgrn/fused_recurrent.py and chunk.py.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.functional import linear_scan


def fused_recurrent_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence, also of packed sequences.

    x: [B, T, D]. g: [B, T, D], the natural logarithm of the forget gate, in x's dtype or float32.
    initial_state: [N, D], in x's dtype or float32; zeros if None. cu_seqlens: int32 or int64 [N+1], offsets of N
        sequences packed into a batch of one; N is B without it.

    Returns h [B, T, D] and, if ``output_final_state``, the last state [N, D], else None; both in x's dtype.
    Differentiable in x, g and initial_state, from both. Raises as linear_scan does, of its x, log_a (g) and h0.
    """
    h, last, *_ = linear_scan(x, log_a=g, h0=initial_state, cu_seqlens=cu_seqlens)
    return h, last.to(x.dtype) if output_final_state else None


def chunk_hgrn(
    x: Tensor, g: Tensor, initial_state: Tensor | None = None, output_final_state: bool = False
) -> tuple[Tensor, Tensor | None]:
    """As ``fused_recurrent_hgrn`` without packed sequences; the last state is float32 (float64 for float64 data).

    Also differentiable in initial_state and from the last state, of which the original drops the gradients.
    """
    h, last, *_ = linear_scan(x, log_a=g, h0=initial_state)
    return h, last if output_final_state else None
