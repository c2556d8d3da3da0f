"""Gate products, gates and recurrence in one pass, in native CPU code; threads over channels of gate blocks.

    z = x W + b         a tile of 12 steps by a vector of channels of both gates in registers, summed over the block
    i, r = sigmoid(z),  a = 2^(rate r),  m = sqrt(1 - a^2)
    h_t = a_t h_{t-1} + m_t i_t x_t

A block of steps of x is widened to float32 and stays in the second-level cache, with one gate block's weights, packed;
arguments of the gates live in the first-level cache from their product to the scan, and nothing but x and y goes
through memory: 8 bytes per element in float32, 4 in bfloat16. n = 256 asks for 1024 flops an element, so that
multiply-adds bind; what follows them are some 60 vector instructions, two divisions and a square root for a vector.

bfloat16 on a processor with AMX: products of gate blocks whose n is a multiple of 32 run on its matrix unit, sixteen
times as fast, and what follows them binds; see _lru_numba_amx.py.

Numerics: everything in float32, bfloat16 and float16 widened when read, y rounded once. The matrix unit multiplies
bfloat16 exactly, and in a recurrent block it takes the convolution's output rounded to it. Exponentials are a
polynomial (relative error 1.3e-7); 1 - a is computed as -expm1(log a), and 1 - a^2 = (1 - a)(1 + a) is exact to its
last bits however near a is to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.rg_lru import _lru_numba_call


@dataclass(frozen=True)
class Config:
    """block_t: steps worked on at a time. block_d: channels of one work item; few where there are many cores."""

    block_t: int = 96
    block_d: int = 256


def reject(case: Case, device: Device, config: Any) -> str | None:
    """Shared with the backward."""
    if reason := unfit_cpu(case, device, config, float64=False):
        return reason
    block_d = getattr(config, "block_d", 16)
    if block_d % 16 or not 16 <= block_d <= 256:
        return "block_d must be a multiple of 16, at most 256"
    return None


VARIANT = Variant(
    op="rg_lru",
    name="numba.fused",
    summary="products, gates and scan in one pass in native code",
    run=_lru_numba_call.forward,
    config=Config,
    axes={"block_t": (24, 48, 96, 192), "block_d": (32, 64, 128, 256)},
    reject=reject,
    rank=lambda case, device: 20,  # above every eager variant
)
