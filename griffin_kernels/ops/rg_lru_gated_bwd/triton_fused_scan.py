"""The gradient in one pass from the last step to the first: the scan of rg_lru_bwd's triton.fused_scan, gates given.

    scan      gates from z; g_t = dy_t + a_{t+1} g_{t+1}; dx = g m i, dz_i, dz_r; a sum for a_param
    sums      partial sums per row of h0, added in a fixed order

Bytes per element: eight data elements (bf16: 16, fp32: 32): dy, x, y, z_i and z_r in, dx, dz_i and dz_r out, the ideal.
Bound by memory where N * D is large, by latency and issue of too few warps where it is not (see
triton.fused_scan_chunked). float32: gates, carry, all gradients and sums; dx, dz_i and dz_r are rounded once.
Source: the chain rule on arXiv 2402.19427, section 2.4; partial sums in place of atomics for run-to-run determinism.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import Variant
from griffin_kernels.launch import Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru._lru_launches import unfit_rows
from griffin_kernels.ops.rg_lru_bwd.triton_fused_scan import scan
from griffin_kernels.ops.rg_lru_gated_bwd import _gated_gradient_launches as gated
from griffin_kernels.ops.rg_lru_gated_bwd.op import Call


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: channels per program."""

    block_t: int = 8
    block_d: int = 64
    num_warps: int = 1


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Step]:
    """The scan with one program per row of h0 and block of channels, the sum."""
    over_time = functools.partial(scan, call, config, gated.load_bits(call, config))
    return gated.launches(call, outputs, config, rows_of(call.x.shape[0], call.cu_seqlens), over_time)


VARIANT = Variant(
    op="rg_lru_gated_bwd",
    name="triton.fused_scan",
    summary="gates, gradients and scan in one pass from the last step, rows loaded ahead",
    config=Config,
    axes={"block_t": (4, 8, 16), "block_d": (32, 64, 128, 256), "num_warps": (1, 2, 4)},
    reject=unfit_rows,
    # the default where there are channels enough to keep the device busy
    rank=lambda case, device: 20 if host.starves(case, device, below=0.03) else 30,
    launches=launches,
    # a sum per row of h0 is written and read
    traffic=lambda case, config: gated.traffic(case, rows=2 * case["N"]),
)
