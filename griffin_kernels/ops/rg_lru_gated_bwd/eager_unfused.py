"""The analytic gradient: gates recomputed, the tuned scan's own backward, elementwise steps in float32."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.rg_lru_bwd.eager_unfused import to_gates
from griffin_kernels.ops.rg_lru_gated import _gated_eager
from griffin_kernels.ops.rg_lru_gated_bwd.op import Call


def gradients(call: Call) -> tuple[Tensor, ...]:
    """All gradients in the op's order; dh0 has no elements where h0 is None."""
    *wide, da_param, dh0 = to_gates(call, _gated_eager.terms(call), call.c)
    return (*[gradient.to(call.x.dtype) for gradient in wide], da_param.to(call.a_param.dtype), dh0)


def run(call: Call, config: NoConfig) -> tuple[Tensor | None, ...]:
    *found, dh0 = gradients(call)
    return (*found, None if call.h0 is None else dh0)


VARIANT = Variant(
    op="rg_lru_gated_bwd",
    name="eager.unfused",
    summary="analytic: gates recomputed, the tuned scan's backward, elementwise steps",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
    # five streams in and three out, some twenty float32 passes of two or three streams
    traffic=lambda case, config: case["B"] * case["T"] * case["D"] * (8 * case.bytes_per_element() + 50 * 4),
)
