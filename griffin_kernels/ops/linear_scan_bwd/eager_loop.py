"""Baseline: the published Python loop, run the other way through time for the gradient; see linear_scan/eager_loop.py.

Autograd through the published loop costs more than this: each step's slice of a gets a gradient of a's full size.
"""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of, through
from griffin_kernels.ops.linear_scan import _scan_eager
from griffin_kernels.ops.linear_scan.eager_loop import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan.eager_loop import core_of

VARIANT = backward_of(FORWARD, through(_scan_eager.backward, core_of))
