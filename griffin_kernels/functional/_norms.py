"""The public norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

from torch import Tensor

from griffin_kernels.functional._bridge import registered
from griffin_kernels.functional._common import beside, documented
from griffin_kernels.ops.rms_norm.op import EPS

_rms_norm: Callable[..., tuple[Tensor, Tensor]] = registered("rms_norm")


# fmt: off
@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = EPS, residual: None = None, weight_offset: float = 0.0,
) -> Tensor: ...


@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = EPS, residual: Tensor, weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]: ...
# fmt: on


@documented((3e-7, 5e-3, 5e-4), (3e-7, 5e-3, 5e-4))
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = EPS,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Root mean square normalisation of the last dimension, of a sum where there is a residual.

        s = x + residual,   y = s / sqrt(mean(s^2) + eps) * (weight_offset + weight)

    Source: arXiv 1910.07467; the offset after google-deepmind/recurrentgemma. What vLLM and Liger-Kernel call
    fused_add_rms_norm, but not in place.
    x: [..., D], float32, bfloat16, float16 or float64; any strides. It keeps its dtype under autocast.
    weight: [D], of any float dtype.
    residual: like x, added to it first.
    weight_offset: 1.0 for weights that are kept as offsets from 1, as Gemma's and RecurrentGemma's are; 0.0 is
        torch.nn.functional.rms_norm.

    Returns y like x; with a residual (y, s), where s is the sum rounded to x's dtype, which the next residual is.
    Differentiable in x, weight and residual, from y and s. For its gradient s, or x, is kept in its own dtype and
    nothing else.

    Numerics: squares are summed in float32 (float64 for float64 data), and the weight is multiplied before y is rounded
    once, as Gemma does it; Llama rounds first. The gradient's sums over rows are float32.
    """
    weight = beside(x, weight)[0]
    if not isinstance(x, Tensor) or x.dim() == 3 or x.dim() == 0:
        y, s = _rms_norm(x, weight, residual, eps, weight_offset)
        return y if residual is None else (y, s)
    if residual is not None and (not isinstance(residual, Tensor) or residual.shape != x.shape):
        y, s = _rms_norm(x, weight, residual, eps, weight_offset)  # names what is wrong
        return y, s
    shape = x.shape
    rows = x[(None,) * (3 - x.dim())] if x.dim() < 3 else x.flatten(0, -3)
    added = None if residual is None else residual.reshape(rows.shape)
    y, s = _rms_norm(rows, weight, added, eps, weight_offset)
    return y.view(shape) if residual is None else (y.view(shape), s.view(shape))
