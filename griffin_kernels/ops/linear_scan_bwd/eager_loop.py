"""Baseline: the published Python loop, run the other way through time for the gradient; see linear_scan/eager_loop.py.

Autograd through the published loop costs more than this: each step's slice of a gets a gradient of a's full size.
"""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_eager, eager_loop

VARIANT = _scan_eager.gradient_of(eager_loop)
