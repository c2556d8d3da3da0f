"""A pass of the convolution, then gate products, gates, scan, gelu and product in one pass.

    u_t = b + sum_k w_k x_{t-k}                                            first pass
    h = rg_lru(u) as rg_lru/triton.fused_gates,  out = h gelu(y)           second pass

Bytes per element, in data elements: 2 + 3 (bf16: 10, of an ideal 6; one more with h). The second pass has 7 special
functions and, on sm_90, 66 instructions per element, or 5 special with ``fast``: bound by instruction issue, the first
by memory bandwidth.
Source: arXiv 2402.19427, sections 2.3 and 2.4; see _triton for why the convolution does not join.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block import _triton
from griffin_kernels.ops.rg_lru import triton_fused_gates as recurrent
from griffin_kernels.ops.rg_lru.cost import cost

Config = recurrent.Config


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Step]:
    """The convolution's launch, then those of rg_lru/triton.fused_gates."""
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
    return _triton.traffic(case, cost(_triton.lru_case(case)).bytes_total)


VARIANT = Variant(
    op="recurrent_block",
    name="triton.fused_gates",
    summary="a pass of the convolution, then products, gates, scan and gelu in one pass",
    run=run,
    config=Config,
    axes=recurrent.VARIANT.axes,
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
