"""Time split over programs in three phases, for long sequences of few blocks; from the last step to the first.

    1. reduce: (P, S) of every chunk but the one visited last, c_out = P c_in + S    reads dh, a
    2. carry:  c_out of every chunk                                                 a block-diagonal scan over chunks
    3. scan:   g_t = dh_t + c_{t+1},  c_t = m_t A_t^T g_t,  dx_t = g_t,  dA_t = m_t g_t h_{t-1}^T

The state that travels is c, not g, so a is not shifted against dh. Phase 1 multiplies matrices, n times the
multiply-adds of the scan; see block_diagonal_scan/triton.chunked for when that pays. Phase 3 takes the chunks in the
opposite order, so that what phase 1 read last, and the cache still holds, is read first.

Bytes per element of h, in data elements: (n + 1) + (2 n + 3), down to 2 n + 3 where dh and a fit in the last-level
cache; plus 2 n + 4 accumulators per chunk and channel.
Source: as block_diagonal_scan/triton.chunked, by the chain rule.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.block_diagonal_scan import _block_launches
from griffin_kernels.ops.block_diagonal_scan import triton_chunked as forward
from griffin_kernels.ops.block_diagonal_scan_bwd import triton_sequential
from griffin_kernels.ops.linear_scan_bwd.triton_chunked import launches, traffic


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer steps ahead than in the forward pass, of more streams."""

    block_t: int = 8


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if _block_launches.splits(case, device, triton_sequential.Config(), 0.65) else 15


VARIANT = backward_of(
    forward.VARIANT,
    config=Config,
    axes={**forward.VARIANT.axes, "block_t": (4, 8)},
    rank=rank,
    launches=launches,
    traffic=traffic,
)
