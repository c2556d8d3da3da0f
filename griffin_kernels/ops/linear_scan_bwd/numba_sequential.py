"""The gradient in one pass against time, in native CPU code; see linear_scan/numba_sequential.py.

Five streams: dh, a and h are read once, dx and da written once. The carry is what flows into the step before.
"""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.linear_scan import _scan_numba_call
from griffin_kernels.ops.linear_scan.numba_sequential import VARIANT as FORWARD

VARIANT = backward_of(FORWARD, _scan_numba_call.gates_backward)
