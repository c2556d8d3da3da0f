"""Baseline: the loop over complex64 tensors, run the other way through time for the gradient."""

from __future__ import annotations

from griffin_kernels.ops.complex_scan import _pair_calls, eager_loop

VARIANT = _pair_calls.gradient_of(eager_loop)
