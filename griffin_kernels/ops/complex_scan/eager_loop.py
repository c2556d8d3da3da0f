"""Baseline: the Python loop over time that a user of complex64 tensors writes first.

    h_t = a_t * h_{t-1} + x_t

Two operations per step on complex64 (complex128) tensors, of which pairs are a view, and a list of states to stack.
"""

from __future__ import annotations

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.complex_scan import _pair_calls
from griffin_kernels.ops.linear_scan import eager_loop

core = eager_loop.core

VARIANT = Variant(
    op="complex_scan",
    name="eager.loop",
    summary="the loop a user of complex64 tensors writes first",
    run=_pair_calls.eager(core)[0],
    config=NoConfig,
    baseline=True,
)
