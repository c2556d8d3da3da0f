"""Time split over programs in three phases, for long sequences of few numbers; from the last step to the first.

    1. reduce: (P, S) of every chunk but the one visited last, c_out = P c_in + S    reads dh, a
    2. carry:  c_in of every chunk                                                  reads and writes rows of chunks only
    3. scan:   g_t = dh_t + c_{t+1},  c_t = m_t conj(a_t) g_t,  dx_t = g_t,  da_t = m_t g_t conj(h_{t-1})

linear_scan_bwd's triton.chunked with two channels for each number.

Bytes per number, in reals: 4 + 10, down to the ideal 10 (20 in bf16, 40 in fp32) where dh and a fit in the last-level
cache; plus twelve accumulators per chunk and number.
Source: as complex_scan/triton.chunked, by the chain rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.complex_scan import _complex_launches
from griffin_kernels.ops.complex_scan import triton_chunked as forward
from griffin_kernels.ops.linear_scan_bwd import triton_chunked


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer rows ahead than in the forward pass, of more streams."""

    block_t: int = 8


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if host.starves(case, device, below=0.0099) else 15


def traffic(case: Case, config: Any) -> int:
    """dh and a read twice but for one chunk, h read, dx and da written, P and S passed on; two reals a number."""
    return 2 * triton_chunked.traffic(case, config)


VARIANT = backward_of(
    forward.VARIANT,
    config=Config,
    axes={**forward.VARIANT.axes, "block_t": (4, 8)},
    rank=rank,
    launches=_complex_launches.backward(triton_chunked.launches),
    traffic=traffic,
)
