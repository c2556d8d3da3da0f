"""The gradient in two passes of native code: everything down to the convolution's output, then the convolution's.

    for blocks of steps, from the last to the first:
        dh = dout gelu(y),  dy = dout h gelu'(y),  u = conv(x)      in the block of steps that the products read
        du = rg_lru_bwd(dh, u, h)                                   as in rg_lru_bwd/numba_fused.py
    dx, dconv_weight, dconv_bias, dconv_state = conv_bwd(du)        as in temporal_conv1d_bwd/numba_direct.py

u, gelu, its slope and dh never leave the caches: the first pass reads x, y, dout and h and writes dy and du, the second
reads du and x and writes dx, 36 bytes per element in float32. The second pass is a few percent of the first, whose six
products bind; it is one of its own because dx of a step needs du of the K-1 steps after it and sums of every tap.

Numerics: float32, u and dh included; du is rounded to the data's dtype between the passes. gelu's tanh form is y s,
s = sigmoid(2 sqrt(2 / pi) (y + 0.044715 y^3)), and 1 - s is exact to its last bits. Sums over time are added in an
order of their own: the same for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.recurrent_block_bwd.op import Call, convolution, recurrence
from griffin_kernels.ops.rg_lru import _lru_numba_call
from griffin_kernels.ops.rg_lru import numba_fused as lru
from griffin_kernels.ops.temporal_conv1d import _conv_numba_call as conv_call
from griffin_kernels.ops.temporal_conv1d_bwd.numba_direct import VARIANT as CONVOLUTION

_CONVOLUTION = CONVOLUTION.config()


@dataclass(frozen=True)
class Config:
    """block_t: steps worked on at a time."""

    block_t: int = 96


def run(call: Call, config: Config) -> tuple[Tensor | None, ...]:
    dy = memory.empty(call.y.shape, call.y.dtype)
    around = _lru_numba_call.Around(call, dy)
    du, *dgates, dh0 = _lru_numba_call.backward(recurrence(call, call.dout, call.x), config, around)
    assert du is not None
    dx, dconv_weight, dconv_bias, dconv_state = conv_call.backward(convolution(call, du), _CONVOLUTION)
    return dx, dy, dconv_weight, dconv_bias, *dgates, dconv_state, dh0


def reject(case: Case, device: Device, config: Any) -> str | None:
    """What either pass cannot do."""
    return lru.reject(case, device, config) or CONVOLUTION.reject(case, device, _CONVOLUTION)


VARIANT = Variant(
    op="recurrent_block_bwd",
    name="numba.fused",
    summary="convolution, products, gates, scan and gelu in one native pass, the convolution's gradient in another",
    run=run,
    config=Config,
    axes={"block_t": (24, 48, 96, 192, 384)},
    reject=reject,
    rank=lru.VARIANT.rank,
    # x, y, dout, h, dy and du; du, x and dx
    traffic=lambda case, config: 9 * case["B"] * case["T"] * case["D"] * case.bytes_per_element(),
)
