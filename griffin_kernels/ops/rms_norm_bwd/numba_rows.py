"""The gradient in one pass over every row, in native CPU code; see rms_norm/numba_rows.py.

    dx = r (g - x r^2 mean(g x)) + ds,  dweight += dy r x

x and dy are read from memory once, and again from the caches for what depends on the row's two sums. Each piece of rows
has sums of the weights' gradient of its own, which are added in order at the end. Three streams, four with ds.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.rms_norm import _norm_numba_call
from griffin_kernels.ops.rms_norm import numba_rows as forward


@dataclass(frozen=True)
class Config(forward.Config):
    """As in the forward op; a piece has one row of sums."""

    block_t: int = 128


VARIANT = backward_of(
    forward.VARIANT,
    _norm_numba_call.backward,
    summary="one pass over every row in native code, sums of pieces",
    config=Config,
    axes={"block_t": (32, 128, 512)},
)
