"""Baseline: the plain loop, run the other way through time for the gradient; see block_diagonal_scan/eager_loop.py."""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of, through
from griffin_kernels.ops.block_diagonal_scan import _block_eager
from griffin_kernels.ops.block_diagonal_scan.eager_loop import VARIANT as FORWARD
from griffin_kernels.ops.block_diagonal_scan.eager_loop import core_of

VARIANT = backward_of(FORWARD, through(_block_eager.backward, core_of))
