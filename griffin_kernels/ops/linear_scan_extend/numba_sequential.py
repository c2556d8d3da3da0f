"""The native pass of linear_scan's numba.sequential, which copies the states that are kept into the pool on its way.

    h_t = a_t * h_{t-1} + x_t,   states[keep[t]] = h_t

What sequences start from is gathered before, one row for each of them, so that no thread reads a row that another has
written. A kept state is copied from the first-level cache, before it is rounded: 4 bytes a channel are written for it.
What binds is told in linear_scan/numba_sequential.py. A pool whose channels are not neighbours in memory is copied,
and copied back.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops.linear_scan import _scan_numba_call
from griffin_kernels.ops.linear_scan.numba_sequential import VARIANT as SCAN
from griffin_kernels.ops.linear_scan.numba_sequential import Config
from griffin_kernels.ops.linear_scan_extend.op import Call, gathered


def run(call: Call, config: Config) -> tuple[Tensor, Tensor]:
    states = native.rows(call.states)
    h, _, _ = _scan_numba_call.gates(gathered(call), config, kept=(call.keep, states))
    if states is not call.states:
        call.states.copy_(states)
    return h, call.states


VARIANT = dataclasses.replace(
    SCAN,
    op="linear_scan_extend",
    summary="scan and kept states in one pass in native code, threads over channels and sequences",
    run=run,
)
