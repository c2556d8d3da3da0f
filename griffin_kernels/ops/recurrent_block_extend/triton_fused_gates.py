"""A pass of the convolution, then gate products on matrix units, gates, scan, gelu and product in one pass over it.

    u_t = b + sum_k w_k x_{t-k}                                            windows gathered from the pool before
    h = rg_lru(u) as rg_lru_extend/triton.fused_gates,  out = h gelu(y)    states read and kept by the scan
    windows of kept tokens                                                 copied from x

Bytes per element as recurrent_block/triton_fused_gates.py, and K-1 inputs and a state for each sequence and each token
that is kept. For a few tokens the launches bind: four.
Source: arXiv 2402.19427, sections 2.3 and 2.4.
"""

from __future__ import annotations

from griffin_kernels.ops.recurrent_block_extend import _block_extend_launches as block
from griffin_kernels.ops.rg_lru_extend import triton_fused_gates as recurrent

VARIANT = block.around(recurrent.VARIANT, "passes of windows and convolution, the rest in one pass with the products")
