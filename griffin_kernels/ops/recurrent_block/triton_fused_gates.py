"""A pass of the convolution, then gate products, gates, scan, gelu and product in one pass.

    u_t = b + sum_k w_k x_{t-k}                                            first pass
    h = rg_lru(u) as rg_lru/triton.fused_gates,  out = h gelu(y)           second pass

Bytes per element, in data elements: 2 + 3 (bf16: 10, of an ideal 6; one more with h). The second pass has 7 special
functions and, on sm_90, 66 instructions per element, or 5 special with ``fast``: bound by instruction issue, the first
by memory bandwidth.
Source: arXiv 2402.19427, sections 2.3 and 2.4; see _triton for why the convolution does not join.
"""

from __future__ import annotations

from griffin_kernels.ops.recurrent_block import _recurrent_launches as block
from griffin_kernels.ops.rg_lru import triton_fused_gates as recurrent

VARIANT = block.around(recurrent.VARIANT, "a pass of the convolution, then products, gates, scan and gelu in one pass")
