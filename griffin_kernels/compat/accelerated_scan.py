"""The function of accelerated-scan, ``from griffin_kernels.compat.accelerated_scan import scan``.

Time is last there, and a number of steps is a power of two; here it is any. Layouts: kernels of ``linear_scan`` want
channels last, so that data with time last is copied on its way in and out. Code that may choose calls linear_scan.
Source: github.com/proger/accelerated-scan, accelerated_scan/warp.py.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.functional import linear_scan


def scan(gates: Tensor, tokens: Tensor) -> Tensor:
    """h_t = gates_t * h_{t-1} + tokens_t from h = 0, over the last dim.

    gates, tokens: [B, C, T], the same float dtype; any strides.

    Returns h [B, C, T], contiguous, in their dtype. Differentiable in both. The state is float32 (float64 for float64
    data) and rounded once, where the original multiplies and adds in the data's dtype.
    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError as linear_scan does, of its x (tokens) and a.
    """
    h, *_ = linear_scan(tokens.transpose(1, 2), gates.transpose(1, 2))
    return h.transpose(1, 2).contiguous()
