"""Gates by batched matrix products, then the device's tuned scan over float32 inputs.

    i = sigmoid(x W_i + b_i),  r = sigmoid(x W_r + b_r)
    log a = -8 softplus(a_param) r,  u = sqrt(-expm1(2 log a)) i x       float32
    h = linear_scan(u, exp(log a))

Elementwise steps run one by one through memory, in place where they can. Runs wherever PyTorch does.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.rg_lru import _lru_eager
from griffin_kernels.ops.rg_lru.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    i, _, log_a, _, m = _lru_eager.terms(call)
    return _lru_eager.scan(i.mul_(call.x).mul_(m), log_a.exp_(), call)


VARIANT = Variant(
    op="rg_lru",
    name="eager.unfused",
    summary="batched gate products, elementwise steps, the tuned scan",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
    # x for each product, arguments out, some eight float32 passes of two or three streams, the scan
    traffic=lambda case, config: case["B"] * case["T"] * case["D"] * (7 * case.bytes_per_element() + 24 * 4),
)
