"""One token for a few rows, in place: all weights in flight at once, no tensor cores; the convolution before.

    u = bias + sum_k w_k x_{t-k},  z = u W + b,  i, r = sigmoid(z)
    h = a h + sqrt(1 - a^2) i u,   out = h gelu(y)

The kernel of rg_lru_step's triton.vector, whose programs share a gate block: the convolution, which moves what is
kept, is a launch of its own (triton.rows), so that none of them reads it half moved. Narrow gate blocks (``block_n`` >=
n) take one launch. See triton.fused for one launch in every case, by fewer programs.

Numerics: products and sums in float32, as gates and state; between two launches u is rounded to the data's dtype.
"""

from __future__ import annotations

from griffin_kernels.ops.recurrent_block_step._recurrent_step_launches import around
from griffin_kernels.ops.rg_lru_step import triton_vector

VARIANT = around(
    triton_vector.VARIANT,
    summary="for a few rows: the convolution, then gates with all weights in flight at once",
)
