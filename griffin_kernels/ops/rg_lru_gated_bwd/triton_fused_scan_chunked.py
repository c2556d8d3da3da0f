"""triton.fused_scan with time split over programs, for all but the largest batches; as in rg_lru_bwd.

    1. reduce:   (P, S) of every chunk but the one visited last, c_out = P c_in + S    reads dy, z_r
    2. carry:    c_in of every chunk                                        reads and writes rows of chunks only
    3. scan:     as triton.fused_scan, from the right c_in; a sum per chunk
    4. sums, as there

Bytes per element, in data elements: 2 to reduce and 8 to scan (bf16: 20, fp32: 40), fewer where dy and z_r fit in the
last-level cache; plus six float32 per chunk and channel for carries and two for sums. Bound by memory bandwidth.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4, and the chain rule on arXiv 2402.19427.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import triton

from griffin_kernels.contract import Case, Variant
from griffin_kernels.launch import Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.rg_lru._lru_launches import unfit_rows
from griffin_kernels.ops.rg_lru_bwd.triton_fused_scan_chunked import pieces_of, scan
from griffin_kernels.ops.rg_lru_gated_bwd import _gated_gradient_launches as gated
from griffin_kernels.ops.rg_lru_gated_bwd.op import Call


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    chunk: int = 128
    block_t: int = 8
    block_d: int = 64
    num_warps: int = 1


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Step]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan, the sum."""
    over_time = functools.partial(scan, call, config, gated.load_bits(call, config), outputs)
    return gated.launches(call, outputs, config, pieces_of(call, config), over_time)


def traffic(case: Case, config: Config) -> int:
    """dy and z_r read twice but for one chunk; per chunk and channel six float32 to pass carries on and two of sums."""
    chunks = triton.cdiv(case["T"], config.chunk)
    again = 2 * case["B"] * (chunks - 1) * config.chunk * case["D"]
    return gated.traffic(case, again, rows=case["B"] * (8 * chunks - 6))


VARIANT = Variant(
    op="rg_lru_gated_bwd",
    name="triton.fused_scan_chunked",
    summary="triton.fused_scan with time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256), "block_t": (4, 8, 16), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=unfit_rows,
    # the default where one pass over time cannot keep the device busy
    rank=lambda case, device: 40 if host.starves(case, device, below=0.03) else 15,
    launches=launches,
    traffic=traffic,
)
