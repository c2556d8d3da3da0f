"""One batched multiply-add of matrices and vectors per time step, written straight into the output.

    h_t = A_t h_{t-1} + x_t

Like the plain loop, but a single kernel per step and no list of states to stack. T launches of B * D * n products:
bound by launch latency unless B * D * n is large. Works on every device, dtype and n; the fallback that cannot fail.
"""

from __future__ import annotations

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.block_diagonal_scan import _block_eager


def core_of(config: NoConfig) -> _block_eager.Core:
    return _block_eager.sequential


def rank(case: Case, device: Device) -> int:
    """Long sequences want fewer launches."""
    return 10 if case["T"] <= 64 else 5


VARIANT = Variant(
    op="block_diagonal_scan",
    name="eager.sequential",
    summary="one batched matrix-vector multiply-add per step",
    run=through(_block_eager.forward, core_of),
    config=NoConfig,
    rank=rank,
)
