"""Gates and recurrence in one pass, in native CPU code; threads over blocks of channels and sequences.

    i, r = sigmoid(z),  a = 2^(rate r),  m = sqrt(1 - a^2)
    h_t = a_t h_{t-1} + m_t i_t x_t

Four streams are all that goes through memory: x, z_i and z_r in, y out; 16 bytes per element in float32, 8 in bfloat16.
Between them lie some 60 vector instructions, two divisions and a square root for a vector: bound by memory where many
cores share it, by divisions where few do.

Numerics: everything in float32, bfloat16 and float16 widened when read, y rounded once; gates as in rg_lru's
numba.fused.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from griffin_kernels.contract import Variant
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.rg_lru_gated import _gated_numba_call


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item, at most."""

    block_d: int = 640


VARIANT = Variant(
    op="rg_lru_gated",
    name="numba.fused",
    summary="gates and scan in one pass in native code",
    run=_gated_numba_call.forward,
    config=Config,
    axes={"block_d": (128, 256, 640, 1280, 2560)},
    reject=functools.partial(unfit_cpu, float64=False),
    rank=lambda case, device: 20,  # above every eager variant
)
