"""Gates and recurrence in one pass over time, the carry in registers: the last pass of rg_lru's triton.fused_scan.

    i = sigmoid(z_i),  r = sigmoid(z_r),  log a = -c softplus(a_param) r
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

A program owns ``block_d`` channels of one batch entry or packed sequence. Rows of x, z_i and z_r are loaded ``block_t``
at a time; for 16-bit data the next tile is in flight while one is worked on. All arithmetic is float32.

Bytes per element: four data elements, x, z_i and z_r in and y out (bf16: 8, fp32: 16), the ideal. Bound by memory
bandwidth where N * D is large, by latency where N * D / block_d programs cannot fill the device (see
triton.fused_scan_chunked).
Source: arXiv 2402.19427, section 2.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import Variant
from griffin_kernels.launch import Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru.triton_fused_scan import scan
from griffin_kernels.ops.rg_lru_gated import _gated_launches as gated
from griffin_kernels.ops.rg_lru_gated.op import Call


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: channels per program."""

    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Step]:
    """One program per row of h0 and block of channels."""
    return [scan(call, config, gated.gates(call), gated.arguments(call, outputs, config))]


VARIANT = Variant(
    op="rg_lru_gated",
    name="triton.fused_scan",
    summary="gates and scan in one pass, rows loaded ahead",
    config=Config,
    axes={"block_t": (8, 16, 32), "block_d": (32, 64, 128, 256), "num_warps": (1, 2, 4)},
    reject=lru.unfit_rows,
    # the default where its loads can keep the memory busy
    rank=lambda case, device: 25 if host.starves(case, device, below=0.016) else 35,
    launches=launches,
)
