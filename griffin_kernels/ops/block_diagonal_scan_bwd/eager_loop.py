"""Baseline: the plain loop, run the other way through time for the gradient; see block_diagonal_scan/eager_loop.py."""

from __future__ import annotations

from griffin_kernels.ops.block_diagonal_scan import _block_eager, eager_loop

VARIANT = _block_eager.gradient_of(eager_loop)
