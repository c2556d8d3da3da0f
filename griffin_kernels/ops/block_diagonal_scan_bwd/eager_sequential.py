"""The scan of the gradient, one batched multiply-add per step; see block_diagonal_scan/eager_sequential.py."""

from __future__ import annotations

from griffin_kernels.ops.block_diagonal_scan import _block_eager, eager_sequential

VARIANT = _block_eager.gradient_of(eager_sequential)
