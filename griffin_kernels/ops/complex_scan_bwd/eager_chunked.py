"""The scan of the gradient in chunks of time; see complex_scan/eager_chunked.py."""

from __future__ import annotations

from griffin_kernels.ops.complex_scan import _pair_calls, eager_chunked

VARIANT = _pair_calls.gradient_of(eager_chunked)
