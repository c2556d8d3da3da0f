"""triton.fused_gates with the time of the second pass split over programs, for long sequences of few channels.

    u = temporal_conv1d(x)                                                 first pass, split over time anyway
    h = rg_lru(u) as rg_lru/triton.fused_gates_chunked,  out = h gelu(y)

Bytes per element, in data elements: 2 + 4 (bf16: 12), u of the second reading mostly from cache; scratch as there.
Bound by instruction issue: products and gates are made twice.
Source: arXiv 2402.19427, sections 2.3 and 2.4; Blelloch, "Prefix sums and their applications" (1990), section 1.4.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block import _triton
from griffin_kernels.ops.rg_lru import triton_fused_gates_chunked as recurrent

Config = recurrent.Config


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Step]:
    """The convolution's launch, then those of rg_lru/triton.fused_gates_chunked."""
    return _triton.steps(inputs, outputs, config, recurrent.launches)


def run(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    conv_state: Tensor | None,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    with_h: bool,
    *,
    config: Config,
) -> tuple[Tensor | None, ...]:
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    rest = (conv_state, h0, segment_pos, cu_seqlens, with_h)
    return _triton.run(launches, config, x, y, conv_weight, conv_bias, *gates, *rest)


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _triton.reject(case, device, config, recurrent.reject)


def rank(case: Case, device: Device) -> int:
    return recurrent.rank(_triton.lru_case(case), device)


def traffic(case: Case, config: Config) -> int:
    return _triton.traffic(case, recurrent.traffic(_triton.lru_case(case), config))


VARIANT = Variant(
    op="recurrent_block",
    name="triton.fused_gates_chunked",
    summary="fused_gates with time split over programs",
    run=run,
    config=Config,
    axes=recurrent.VARIANT.axes,
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
