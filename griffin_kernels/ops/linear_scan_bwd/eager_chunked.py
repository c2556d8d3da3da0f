"""The reverse scan of the gradient in chunks of time; see linear_scan/eager_chunked.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_eager, eager_chunked

VARIANT = _scan_eager.gradient_of(eager_chunked)
