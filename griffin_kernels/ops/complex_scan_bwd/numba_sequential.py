"""The gradient in one pass against time, in native CPU code; see complex_scan/numba_sequential.py.

Five streams of two reals a number: dh, a and h are read once, dx and da written once.
"""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.complex_scan import _pair_calls
from griffin_kernels.ops.complex_scan.numba_sequential import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan import _scan_numba_call

VARIANT = backward_of(FORWARD, _pair_calls.on_pairs(_scan_numba_call.backward))
