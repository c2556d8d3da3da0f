"""The gradient with time cut into chunks, in native CPU code; see complex_scan/numba_chunked.py.

The first phase needs only dh and a: over a chunk, visited against time, the carry goes from c to P c + L with P the
product of the conjugates of a. dh and a are read twice.
"""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import Case
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.complex_scan import _pair_calls
from griffin_kernels.ops.complex_scan.numba_chunked import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan import _scan_numba_call
from griffin_kernels.ops.linear_scan_bwd import numba_chunked


def traffic(case: Case, config: Any) -> int:
    """Bytes moved: dh and a twice, h, dx and da once, two reals a number."""
    return 2 * numba_chunked.traffic(case, config)


VARIANT = backward_of(FORWARD, _pair_calls.on_pairs(_scan_numba_call.backward), traffic=traffic)
