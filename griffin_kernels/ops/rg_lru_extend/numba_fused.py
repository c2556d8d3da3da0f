"""The native pass of rg_lru's numba.fused, which copies the states that are kept into the pool as it comes by.

    z = x W + b,  i, r = sigmoid(z),  h_t = a_t h_{t-1} + m_t i_t x_t,  states[keep[t]] = h_t

What sequences start from is gathered before, 4 bytes a channel for each of them, so that no thread reads a row that
another has written. A kept state is copied from the first-level cache, before it is rounded. For long sequences:
weights are packed once, for many steps. What binds is told in rg_lru/numba_fused.py.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops.rg_lru import _lru_numba_call
from griffin_kernels.ops.rg_lru.numba_fused import VARIANT as RG_LRU
from griffin_kernels.ops.rg_lru.numba_fused import Config
from griffin_kernels.ops.rg_lru_extend.op import Call, gathered


def run(call: Call, config: Config) -> tuple[Tensor, Tensor]:
    states = native.rows(call.states)
    y, _ = _lru_numba_call.forward(gathered(call, call.x), config, kept=_lru_numba_call.Kept(call.keep, states))
    if states is not call.states:
        call.states.copy_(states)
    return y, call.states


VARIANT = dataclasses.replace(
    RG_LRU,
    op="rg_lru_extend",
    summary="products, gates, scan and kept states in one pass in native code",
    run=run,
)
