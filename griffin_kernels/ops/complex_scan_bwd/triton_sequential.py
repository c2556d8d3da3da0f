"""One pass from the last step to the first, the carry in registers, ``block_t`` rows loaded ahead of the scan.

    g_t = dh_t + c_{t+1},   dx_t = g_t,   da_t = m_t g_t conj(h_{t-1}),   c_t = m_t conj(a_t) g_t,   dh0 = c_0

with m_t = 0 where the state was reset. linear_scan_bwd's triton.sequential with two channels for each number, the
mirror of complex_scan/triton.sequential. Only the last tile, which holds the first step, is masked.

Bytes per number: the ideal ten reals (20 in bf16, 40 in fp32). Bound as the forward pass is.
Source: the chain rule on complex_scan.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.complex_scan import _complex_launches
from griffin_kernels.ops.complex_scan import triton_sequential as forward
from griffin_kernels.ops.linear_scan_bwd.triton_sequential import launches


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer rows ahead than in the forward pass, of more streams."""

    block_t: int = 8


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if host.starves(case, device, below=0.0099) else 30


VARIANT = backward_of(
    forward.VARIANT,
    config=Config,
    axes={**forward.VARIANT.axes, "block_t": (4, 8, 16)},
    rank=rank,
    launches=_complex_launches.backward(launches),
)
