"""One fused multiply-add per time step, written straight into the output.

    h_t = a_t * h_{t-1} + x_t

Like the published loop, but a single kernel per step and no list of states to stack. T launches of B*D elements:
bound by launch latency unless B*D is large. Works on every device and dtype; the fallback that cannot fail.
"""

from __future__ import annotations

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.linear_scan import _scan_eager

core = _scan_eager.sequential


def rank(case: Case, device: Device) -> int:
    """Long sequences want fewer launches."""
    return 10 if case["T"] <= 64 else 5


VARIANT = Variant(
    op="linear_scan",
    name="eager.sequential",
    summary="one fused multiply-add per step",
    run=through(_scan_eager.forward_and_product, core),
    config=NoConfig,
    rank=rank,
)
