"""One token between a block's linear layers in native CPU code: convolution, gates, state and gelu in one pass.

    u = bias + sum_k w_k x_{t-k},  z = u W + b,  i, r = sigmoid(z)
    h = a h + sqrt(1 - a^2) i u,   out = h gelu(y)

The code of rg_lru_step's numba.fused, whose docstring says how the products are done; a gate block's inputs come out of
the convolution instead of memory, as float32, and the kept inputs move while they are in the first-level cache. Where a
block is shared by several threads (``block_d`` below n) each computes all of its inputs, and the one that is last moves
what is kept. gelu's tanh form is y sigmoid(2 sqrt(2 / pi) (y + 0.044715 y^3)): one more exponential and division.
"""

from __future__ import annotations

import dataclasses

from griffin_kernels.ops.rg_lru_step import _lru_step_numba_call
from griffin_kernels.ops.rg_lru_step.numba_fused import VARIANT as RG_LRU

VARIANT = dataclasses.replace(
    RG_LRU,
    op="recurrent_block_step",
    summary="convolution, gates, state and gelu in one pass in native code",
    run=_lru_step_numba_call.block,
)
