"""One pass from the last step to the first, states in registers, ``block_t`` steps loaded ahead of the scan.

    g_t = dh_t + c_{t+1},   dx_t = g_t,   dA_t = m_t g_t h_{t-1}^T,   c_t = m_t A_t^T g_t,   dh0 = c_0

with m_t = 0 where the state was reset. The mirror of block_diagonal_scan/triton.sequential: a matrix in registers is
multiplied by g along its rows and summed over them, dA is written with the same 16 bytes a thread. Only the last tile,
which holds the first step, is masked.

Bytes per element of h: 2 n + 3 data elements, the ideal; a and dA dominate (bf16, n = 16: 70). Bound by memory
bandwidth where N * H blocks fill the device; else by the latency of a step. The sum over a matrix's rows crosses
threads: for n = 16 four shuffles per element of a, by count some 40% of what an H100 issues while it moves the bytes.
Source: the chain rule on block_diagonal_scan.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.block_diagonal_scan import _block_launches
from griffin_kernels.ops.block_diagonal_scan import triton_sequential as forward
from griffin_kernels.ops.linear_scan_bwd.triton_sequential import launches


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer steps ahead than in the forward pass, of more streams."""

    block_t: int = 8


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if _block_launches.splits(case, device, Config(), 0.65) else 30


VARIANT = backward_of(
    forward.VARIANT, config=Config, axes={**forward.VARIANT.axes, "block_t": (4, 8, 16)}, rank=rank, launches=launches
)
