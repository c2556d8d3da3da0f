"""The reverse scan of the gradient, one fused multiply-add per time step; see linear_scan/eager_sequential.py."""

from __future__ import annotations

from griffin_kernels.ops.linear_scan import _scan_eager, eager_sequential

VARIANT = _scan_eager.gradient_of(eager_sequential)
