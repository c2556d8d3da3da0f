"""A pass of the convolution, gate products by a matrix library, then gates, scan, gelu and product in one pass.

    u_t = b + sum_k w_k x_{t-k}                                            first pass
    z_i = u W_i,  z_r = u W_r                                              a matrix library
    h = rg_lru(u) as rg_lru/triton.fused_scan,  out = h gelu(y)            last pass

Bytes per element, in data elements: 2 + 4 + 5 (bf16: 22, fp32: 44; one more with h). Bound by memory bandwidth. For
data whose products fused_gates cannot make: float32, and gate blocks wider than 256.
Source: arXiv 2402.19427, sections 2.3 and 2.4.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block import _triton
from griffin_kernels.ops.rg_lru import triton_fused_scan as recurrent

Config = recurrent.Config


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Step]:
    """The convolution's launch, then those of rg_lru/triton.fused_scan."""
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
    name="triton.fused_scan",
    summary="a pass of the convolution, products by a matrix library, the rest in one pass",
    run=run,
    config=Config,
    axes=recurrent.VARIANT.axes,
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
