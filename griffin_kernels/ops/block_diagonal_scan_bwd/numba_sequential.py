"""The gradient in one pass against time, in native CPU code; see block_diagonal_scan/numba_sequential.py.

dh, h and a are read once, dx and da written once: 2 n + 3 data elements per element of h. The sum over a matrix's
column needs fewer shuffles than the one over its row: for n = 16 none.
"""

from __future__ import annotations

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.block_diagonal_scan.numba_sequential import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan import _scan_numba_call

VARIANT = backward_of(FORWARD, _scan_numba_call.backward)
