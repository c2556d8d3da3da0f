"""triton.fused_scan with time split over programs, for long sequences of few channels; as in rg_lru.

    1. reduce:   (P, S) of every chunk but the last, h_out = P h_in + S     reads x, z_i and z_r
    2. carry:    h_in of every chunk                                        reads and writes rows of chunks only
    3. scan:     gates once more, and h from the right h_in                 reads x, z_i and z_r; writes y

P is a product of gates a <= 1: it can only go to 0, where it should.

Bytes per element, in data elements: 3 to reduce, 4 to scan (bf16: 14, fp32: 28), fewer where the inputs fit in the
last-level cache; plus six float32 per chunk and channel. Bound by memory bandwidth; one pass would be bound by latency
here.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4, on the recurrence of arXiv 2402.19427.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import Variant
from griffin_kernels.launch import Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru.triton_fused_scan_chunked import scan
from griffin_kernels.ops.rg_lru_gated import _gated_launches as gated
from griffin_kernels.ops.rg_lru_gated.cost import cost
from griffin_kernels.ops.rg_lru_gated.op import Call


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    chunk: int = 64
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Step]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    args = gated.arguments(call, outputs, config)
    return [*scan(call, config, gated.gates(call), args, outputs["h_last"])]


VARIANT = Variant(
    op="rg_lru_gated",
    name="triton.fused_scan_chunked",
    summary="time split over programs: reduce, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256), "block_t": (8, 16), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=lru.unfit_rows,
    # the default where one pass over time cannot keep the memory busy
    rank=lambda case, device: 45 if host.starves(case, device, below=0.016) else 15,
    launches=launches,
    # the three inputs of all chunks but the last once more, scratch rows
    traffic=lambda case, config: lru.traffic(case, 4, config.chunk, again=3, ideal=cost, least=4),
)
