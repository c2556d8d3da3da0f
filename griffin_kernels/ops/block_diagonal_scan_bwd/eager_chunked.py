"""The scan of the gradient in chunks of time; see block_diagonal_scan/eager_chunked.py."""

from __future__ import annotations

from griffin_kernels.ops.block_diagonal_scan import _block_eager, eager_chunked

VARIANT = _block_eager.gradient_of(eager_chunked)
