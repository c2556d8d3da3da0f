"""The scan of the gradient, one complex multiply-add per step; see complex_scan/eager_sequential.py."""

from __future__ import annotations

from griffin_kernels.ops.complex_scan import _pair_calls, eager_sequential

VARIANT = _pair_calls.gradient_of(eager_sequential)
