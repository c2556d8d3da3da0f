"""One fused complex multiply-add per time step, written straight into the output.

    h_t = a_t * h_{t-1} + x_t

torch's complex64 (complex128) arithmetic on views of the pairs; 16-bit pairs are widened first. T launches of B * D
numbers: bound by launch latency unless B * D is large. Works on every device and dtype; the fallback that cannot fail.
"""

from __future__ import annotations

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.complex_scan import _pair_calls
from griffin_kernels.ops.linear_scan import eager_sequential

core = eager_sequential.core

VARIANT = Variant(
    op="complex_scan",
    name="eager.sequential",
    summary="one fused complex multiply-add per step",
    run=_pair_calls.eager(core)[0],
    config=NoConfig,
    rank=eager_sequential.rank,
)
