"""The scan of the gradient, one batched multiply-add per step; see block_diagonal_scan/eager_sequential.py."""

from __future__ import annotations

from griffin_kernels.ops.block_diagonal_scan import eager_sequential
from griffin_kernels.ops.linear_scan import _scan_eager

VARIANT = _scan_eager.gradient_of(eager_sequential)
