"""One pass over time, the states in registers, ``block_t`` rows loaded ahead of the scan.

    h_t = a_t h_{t-1} + x_t

linear_scan's triton.sequential with two channels for each number, which lie in one thread: a program owns ``block_d``
numbers of one batch entry or packed sequence, and a step is four multiply-adds for each of them. Only the last tile is
masked in time.

Bytes per number: the ideal six reals (12 in bf16, 24 in fp32). Bound by memory bandwidth where N * D is large; by
memory latency where N * D / block_d programs cannot fill the device (see triton.chunked).
Source: the recurrence of arXiv 2402.19427, appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.complex_scan import _complex_launches
from griffin_kernels.ops.linear_scan.triton_sequential import launches


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: numbers per program; block_d / (32 num_warps) is a thread's share."""

    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


def reject(case: Case, device: Device, config: Config) -> str | None:
    return host.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy: half the rows of twice the reals of linear_scan."""
    return 20 if host.starves(case, device, below=0.0066) else 30


VARIANT = Variant(
    op="complex_scan",
    name="triton.sequential",
    summary="one pass, states in registers, rows loaded ahead",
    config=Config,
    axes={"block_t": (8, 16, 32), "block_d": (32, 64, 128), "num_warps": (1, 2)},
    reject=reject,
    rank=rank,
    launches=_complex_launches.forward(launches),
)
