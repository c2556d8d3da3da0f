"""The reverse scan of the gradient, one fused multiply-add per time step; see linear_scan/eager_sequential.py."""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of, through
from griffin_kernels.ops.linear_scan import _scan_eager
from griffin_kernels.ops.linear_scan.eager_sequential import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan.eager_sequential import core_of

VARIANT = backward_of(FORWARD, through(_scan_eager.backward, core_of))
