"""One pass over x in native CPU code, taps in registers; a thread per chunk of time and block of channels.

    y_t = act(bias + sum_k weight[K-1-k] x_{t-k}) + residual_t

A vector of channels goes down a tile of steps with its K taps and K-1 earlier inputs in registers, so that each element
is read once, widened once, rounded and written once: two streams, bound by DRAM. A tile begins by reading the K-1 rows
before it again, from the caches. Chunks of packed sequences are cut once more where a sequence begins. A residual is
one stream more, in kernels of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.temporal_conv1d import _conv_numba_call

_MOST_TAPS = 16
"""More would live on the stack instead of in registers, in code that grows with their number."""


@dataclass(frozen=True)
class Config:
    """block_t, block_d: steps and channels of one work item. tile: steps that a vector of channels goes down at once;
    few suit the processor's prefetcher, many read and widen fewer rows twice.
    """

    block_t: int = 64
    block_d: int = 2560
    tile: int = 8


def reject(case: Case, device: Device, config: Config) -> str | None:
    """Shared with the backward op."""
    many = f"{case['K']} taps are more than the {_MOST_TAPS} it keeps in registers" if case["K"] > _MOST_TAPS else None
    return unfit_cpu(case, device, config) or many


VARIANT = Variant(
    op="temporal_conv1d",
    name="numba.direct",
    summary="one pass in native code, taps in registers",
    run=_conv_numba_call.forward,
    config=Config,
    axes={"block_t": (16, 64, 256), "block_d": (128, 640, 2560), "tile": (1, 2, 4, 8, 16)},
    reject=reject,
    rank=lambda case, device: 20,
)
