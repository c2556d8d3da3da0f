"""The gradient in one pass, in native CPU code; see temporal_conv1d/numba_direct.py.

    dx_s = sum_k weight[K-1-k] dy_{s+k},  dweight[K-1-k] += dy_{s+k} x_s,  dbias += dy_s

Three streams: dy and x are read once, dx written once. A vector of channels keeps its taps, the K-1 later gradients and
the K+1 sums in registers; each chunk of time has sums of its own, which are added at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.temporal_conv1d import _conv_numba_call
from griffin_kernels.ops.temporal_conv1d import numba_direct as forward


@dataclass(frozen=True)
class Config(forward.Config):
    """As in the forward op; a tile loads and stores the sums once."""

    block_t: int = 256
    block_d: int = 2560
    tile: int = 8


VARIANT = backward_of(
    forward.VARIANT,
    _conv_numba_call.backward,
    summary="one pass in native code, taps and sums in registers",
    config=Config,
    axes={"block_t": (64, 256, 1024), "block_d": (128, 640, 2560), "tile": (2, 4, 8, 16)},
)
