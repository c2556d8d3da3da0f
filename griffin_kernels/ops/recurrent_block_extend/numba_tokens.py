"""A few tokens of each sequence between a block's linear layers, in native CPU code and one pass.

    u = bias + sum_k w_k x_{t-k},  z = u W + b,  i, r = sigmoid(z)
    h = a h + sqrt(1 - a^2) i u,   out = h gelu(y),   conv_states[keep] = the last inputs,  states[keep] = h

The code of rg_lru_extend's numba.tokens. A gate block's inputs come out of the convolution as float32; every item of
the block computes all of them, and the first one writes the windows that are kept. What sequences start from is
gathered before, since another item may have yet to read it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops.recurrent_block_extend.op import Call
from griffin_kernels.ops.rg_lru_extend import _lru_extend_numba_call
from griffin_kernels.ops.rg_lru_extend.numba_tokens import VARIANT as RG_LRU


def run(call: Call, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    windows, convolution = native.rows(call.conv_states), (call.conv_weight, call.conv_bias)
    out = _lru_extend_numba_call.run(call, config, native.rows(call.y), windows, convolution)
    if windows is not call.conv_states:
        call.conv_states.copy_(windows)
    return out, call.conv_states, call.states


VARIANT = dataclasses.replace(
    RG_LRU,
    op="recurrent_block_extend",
    summary="convolution, gates, states and gelu of a few tokens in one pass in native code",
    run=run,
)
