"""One pass over time, the state of a group of blocks in registers, ``block_t`` steps loaded ahead of the scan.

    h_t = A_t h_{t-1} + x_t

A program owns the blocks whose matrices are ``block_a`` elements of a step: they are contiguous, so its loads are 16
bytes a thread for every n. All loads of block_t steps are issued before the first is used. A product of matrix and
vector is a multiply by the broadcast state and a sum over k: within a thread as far as its 16 bytes go (bf16: a whole
block of 2, two rows of a block of 4, a row of 8), by shuffles within a warp beyond. Matrix instructions do not fit:
they want several vectors per matrix. Only the last tile is masked in time.

Bytes per element of h: n + 2 data elements, the ideal; a dominates (bf16, n = 16: 36). Bound by memory bandwidth where
N * H blocks fill the device; else by the latency of a step, a chain of one multiply, log2(n) additions and one exchange
of the state between threads (see triton.chunked).
Source: the recurrence of linear_scan/triton.sequential, whose form this has, with a matrix in place of a factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.block_diagonal_scan import _block_launches
from griffin_kernels.ops.linear_scan.triton_sequential import launches


@dataclass(frozen=True)
class Config:
    """block_t: steps loaded ahead. block_a: elements of a that a program takes of one step, whole blocks."""

    block_t: int = 16
    block_a: int = 256
    num_warps: int = 1


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _block_launches.unfit(case, device, config.block_a, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if _block_launches.splits(case, device, Config(), 0.4) else 30


VARIANT = Variant(
    op="block_diagonal_scan",
    name="triton.sequential",
    summary="one pass, states in registers, steps loaded ahead",
    config=Config,
    axes={"block_t": (4, 8, 16, 32), "block_a": (256, 512, 1024), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
