"""The gradient with time cut into chunks, in native CPU code; see linear_scan/numba_chunked.py.

The first phase needs only dh and a: over a chunk, visited against time, the carry goes from c to P c + L with P the
product of a. dh and a are read twice.
"""

from __future__ import annotations

from griffin_kernels.contract import Case
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.linear_scan import _scan_numba_call
from griffin_kernels.ops.linear_scan.numba_chunked import VARIANT as FORWARD
from griffin_kernels.ops.linear_scan.numba_chunked import Config


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: dh and a twice, h, dx and da once."""
    streams = 5 if case["T"] <= config.chunk else 7
    return streams * case["B"] * case["T"] * case["D"] * case.bytes_per_element()


VARIANT = backward_of(FORWARD, _scan_numba_call.gates_backward, traffic=traffic)
