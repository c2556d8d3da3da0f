"""Gates step by step, then the device's tuned scan over float32 inputs.

    i = sigmoid(z_i),  r = sigmoid(z_r)
    log a = -c softplus(a_param) r,  u = sqrt(-expm1(2 log a)) i x       float32
    h = linear_scan(u, exp(log a))

What a user of this package's linear_scan would write. Every step goes through memory, some in place. Runs wherever
PyTorch does.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.rg_lru import _lru_eager
from griffin_kernels.ops.rg_lru_gated import _gated_eager
from griffin_kernels.ops.rg_lru_gated.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    i, _, log_a, _, m = _gated_eager.terms(call)
    return _lru_eager.scan(i.mul_(call.x).mul_(m), log_a.exp_(), call)


VARIANT = Variant(
    op="rg_lru_gated",
    name="eager.unfused",
    summary="elementwise steps, the tuned scan",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
    # z_i, z_r, x in and y out, some eight float32 passes of two or three streams, the scan
    traffic=lambda case, config: case["B"] * case["T"] * case["D"] * (4 * case.bytes_per_element() + 22 * 4),
)
