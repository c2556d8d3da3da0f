"""triton.fused_scan with time split over programs, for all but the largest batches; gelu's gradient is in the scan.

    u = conv(x)                                     temporal_conv1d/triton.rows
    du, dy, gates                                   rg_lru_bwd/triton.fused_scan_chunked with the branch y
    dx, dconv_weight, dconv_bias, dconv_state       temporal_conv1d_bwd/triton.rows

dh = dout gelu(y) is formed where it is read, once to reduce the chunks and once to scan them; it never goes through
memory.

Bytes per element, in data elements: 3 to reduce (dout, y, z_r) and 10 to scan, the products ten, both convolutions
five (bf16: 56). Bound by memory bandwidth; one pass would be bound by latency and issue here.
Source: as rg_lru_bwd/triton.fused_scan_chunked, and arXiv 2402.19427, section 2.3.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block_bwd import _triton
from griffin_kernels.ops.rg_lru_bwd import triton_fused_scan_chunked as recurrent

Config = recurrent.Config


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Step]:
    """The convolution, rg_lru_bwd/triton.fused_scan_chunked with a branch, the convolution's gradient."""
    return _triton.launches(inputs, outputs, config, recurrent.launches)


def run(
    dout: Tensor,
    dnew_conv_state: Tensor | None,
    dh_last: Tensor | None,
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h: Tensor,
    conv_state: Tensor | None,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    config: Config,
) -> tuple[Tensor | None, ...]:
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    given = (dout, dnew_conv_state, dh_last, x, y, conv_weight, conv_bias)
    return _triton.run(launches, config, *given, *gates, h, conv_state, h0, segment_pos, cu_seqlens)


def reject(case: Case, device: Device, config: Config) -> str | None:
    return recurrent.reject(_triton.recurrent_case(case), device, config)


def rank(case: Case, device: Device) -> int:
    """As the gradient of RG-LRU that it holds."""
    return recurrent.rank(_triton.recurrent_case(case), device)


def traffic(case: Case, config: Config) -> int:
    return _triton.traffic(case, recurrent.traffic(_triton.recurrent_case(case), config))


VARIANT = Variant(
    op="recurrent_block_bwd",
    name="triton.fused_scan_chunked",
    summary="triton.fused_scan with time split over programs: reduce chunks, carry, scan",
    run=run,
    config=Config,
    axes=recurrent.VARIANT.axes,
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
