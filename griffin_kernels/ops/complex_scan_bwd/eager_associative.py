"""The scan of the gradient by recursive doubling; see complex_scan/eager_associative.py."""

from __future__ import annotations

from griffin_kernels.ops.complex_scan import _pair_calls, eager_associative

VARIANT = _pair_calls.gradient_of(eager_associative)
