"""Baseline: the plain loop, run the other way through time for the gradient; see block_diagonal_scan/eager_loop.py."""

from __future__ import annotations

from griffin_kernels.ops.block_diagonal_scan import eager_loop
from griffin_kernels.ops.linear_scan import _scan_eager

VARIANT = _scan_eager.gradient_of(eager_loop)
