"""Convolution, gate products, gates, recurrence and the product with gelu(y) in one native pass.

As rg_lru/numba_fused.py, with what surrounds it:

    u = conv(x)         into the block of steps that the products read
    h = rg_lru(u),  out = h gelu(y)

Only x and y are read and only out is written, 12 bytes per element in float32: u and gelu(y) never leave the caches.
Convolution and gelu are 20 of some 90 vector instructions beside the products, which bind. h is written too where the
backward pass wants it.

Numerics: float32 from x to out; gelu's tanh form is y sigmoid(2 sqrt(2 / pi) (y + 0.044715 y^3)), the same function.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.ops.recurrent_block.op import Call
from griffin_kernels.ops.rg_lru import _lru_numba_call
from griffin_kernels.ops.rg_lru.numba_fused import VARIANT as RG_LRU
from griffin_kernels.ops.rg_lru.numba_fused import Config
from griffin_kernels.ops.rg_lru.op import within
from griffin_kernels.ops.temporal_conv1d.op import new_state


def run(call: Call, config: Config) -> tuple[Tensor | None, ...]:
    h = memory.empty(call.x.shape, call.x.dtype) if call.with_h else None
    out, h_last = _lru_numba_call.forward(within(call, call.x), config, _lru_numba_call.Around(call, h))
    kept = new_state(call.x, call.conv_state, call.segment_pos, call.cu_seqlens, call.conv_weight.shape[0])
    return out, kept, h_last, h


VARIANT = dataclasses.replace(
    RG_LRU,
    op="recurrent_block",
    summary="convolution, products, gates, scan and gelu in one pass in native code",
    run=run,
)
