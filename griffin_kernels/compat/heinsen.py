"""Heinsen's scan as minGRU-pytorch has it, ``from griffin_kernels.compat.heinsen import heinsen_associative_scan_log``.

There sums of logarithms stand for the recurrence, which float32 bears for positive values and some length. Here the
recurrence itself is run: no difference of long sums, and a coefficient of 0 (minus infinity) is none of NaN.
Source: arXiv 2311.06281; github.com/lucidrains/minGRU-pytorch, minGRU_pytorch/minGRU.py.
"""

from __future__ import annotations

import math

from torch import Tensor

from griffin_kernels.functional import linear_scan


def heinsen_associative_scan_log(log_coeffs: Tensor, log_values: Tensor) -> Tensor:
    """h_t = exp(log_coeffs_t) h_{t-1} + exp(log_values_t) from h = 0, over the dim after the first.

    log_coeffs, log_values: [B, T, ...], the same shape; log_coeffs in the other's dtype or float32.

    Returns h, no longer a logarithm, of that shape in log_values' dtype. Differentiable in both. It overflows where h
    does. A state that was prepended to log_values, as minGRU does, is ``linear_scan``'s h0.
    Raises as linear_scan does, of its x (log_values) and log_a.
    """
    shape = log_values.shape
    coeffs, values = (value.reshape(*value.shape[:2], math.prod(value.shape[2:])) for value in (log_coeffs, log_values))
    h, *_ = linear_scan(values.exp(), log_a=coeffs)
    return h.reshape(shape)
