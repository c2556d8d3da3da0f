"""The gradient in one pass, in native CPU code; see rg_lru/numba_fused.py. Threads over gate blocks and batch rows.

    for blocks of steps, from the last to the first, and panels of channels:
        z = x W + b, gates, g_t = dy_t + a_{t+1} g_{t+1}, dz_i and dz_r        the equations of op.py
    dx = g m i + dz W^T,  dW += x^T dz

Six products of a gate's size and nothing else of weight: gates are recomputed, and x, dy, y and both dz of a block of
steps stay in the second-level cache in float32. Memory sees x, dy and y read once and dx written once: 16 bytes per
element in float32, 8 in bfloat16.

Numerics: float32; dz is not rounded before its products, but on a matrix unit, which takes bfloat16. 1 - sigmoid(z) is
exp(-z) sigmoid(z), exact to its last bits. Sums over time (weights, biases, a_param) are sums of blocks of steps, added
in order: the same for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.rg_lru import _lru_numba_call
from griffin_kernels.ops.rg_lru.numba_fused import VARIANT as FORWARD


@dataclass(frozen=True)
class Config:
    """block_t: steps worked on at a time."""

    block_t: int = 96


VARIANT = backward_of(
    FORWARD,
    _lru_numba_call.backward,
    summary="all six products, gates and scan in one pass in native code",
    config=Config,
    axes={"block_t": (24, 48, 96, 192, 384)},
)
