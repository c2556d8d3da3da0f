"""A pass of the convolution, gate products by a matrix library, then gates, scan, gelu and product in one pass.

    u_t = b + sum_k w_k x_{t-k}                                            first pass
    z_i = u W_i,  z_r = u W_r                                              a matrix library
    h = rg_lru(u) as rg_lru/triton.fused_scan,  out = h gelu(y)            last pass

Bytes per element, in data elements: 2 + 4 + 5 (bf16: 22, fp32: 44; one more with h). Bound by memory bandwidth. For
data whose products fused_gates cannot make: float32, and gate blocks wider than 256.
Source: arXiv 2402.19427, sections 2.3 and 2.4.
"""

from __future__ import annotations

from griffin_kernels.ops.recurrent_block import _recurrent_launches as block
from griffin_kernels.ops.rg_lru import triton_fused_scan as recurrent

VARIANT = block.around(
    recurrent.VARIANT, "a pass of the convolution, products by a matrix library, the rest in one pass"
)
