"""torch's rms_norm in float32 between two casts, after an addition.

    s = x + residual;   y = rms_norm(float32(s), weight_offset + float32(weight))

Runs wherever PyTorch does. On a CPU torch composes its rms_norm of five passes over float32; on a GPU it is one kernel
between the casts.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from griffin_kernels.contract import Case, NoConfig, Variant, accumulator
from griffin_kernels.ops.rms_norm import unfused
from griffin_kernels.ops.rms_norm.op import Call


def forward(call: Call) -> tuple[Tensor, Tensor | None]:
    x, weight, residual, eps, offset = call
    s = x if residual is None else x + residual
    wide = accumulator(x.dtype)
    y = functional.rms_norm(s.to(wide), weight.shape, offset + weight.to(wide), eps)
    return y.to(x.dtype), None if residual is None else s


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor | None]:
    return forward(call)


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes that torch's passes on a CPU move."""
    return sum(step.count * step.cost.bytes_total for step in unfused.passes(case))


VARIANT = Variant(
    op="rms_norm",
    name="eager.composed",
    summary="torch's rms_norm between casts",
    run=run,
    rank=lambda case, device: 10,
    traffic=traffic,
)
