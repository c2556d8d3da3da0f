"""The scan of the gradient in chunks of time; see block_diagonal_scan/eager_chunked.py."""

from __future__ import annotations

from griffin_kernels.ops.block_diagonal_scan import eager_chunked
from griffin_kernels.ops.linear_scan import _scan_eager

VARIANT = _scan_eager.gradient_of(eager_chunked)
