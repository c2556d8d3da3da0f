"""The native pass of recurrent_block's numba.fused, which copies the states that are kept as it comes by.

    u = conv(x),  h = rg_lru(u),  out = h gelu(y),  states[keep[t]] = h_t

As rg_lru_extend's numba.fused: what sequences start from is gathered before. Windows that are kept are copied
afterwards, K-1 inputs each. For long sequences: weights are packed once, for many steps.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from griffin_kernels.ops import _keep
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops.recurrent_block.op import Call as BlockCall
from griffin_kernels.ops.recurrent_block_extend.op import Call, recurrence, weights_of
from griffin_kernels.ops.rg_lru import _lru_numba_call
from griffin_kernels.ops.rg_lru.numba_fused import Config
from griffin_kernels.ops.rg_lru_extend.numba_fused import VARIANT as RG_LRU
from griffin_kernels.ops.rg_lru_extend.op import gathered


def run(call: Call, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    before, states = _keep.initial(call.conv_states, call.slots), native.rows(call.states)
    given = gathered(recurrence(call, call.x), call.x)
    block = BlockCall(call.x, call.y, *weights_of(call), before, given.h0, call.segment_pos, call.cu_seqlens)
    around, kept = _lru_numba_call.Around(block, None), _lru_numba_call.Kept(call.keep, states)
    out, _ = _lru_numba_call.forward(given, config, around, kept)
    if states is not call.states:
        call.states.copy_(states)
    _keep.write_windows(call.conv_states, call, before)
    return out, call.conv_states, call.states


VARIANT = dataclasses.replace(
    RG_LRU,
    op="recurrent_block_extend",
    summary="convolution, products, gates, scan, gelu and kept states in one pass in native code",
    run=run,
)
