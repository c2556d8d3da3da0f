"""triton.fused_scan with the time of its last pass split over programs, for long sequences of few channels.

    u = temporal_conv1d(x);  z_i = u W_i,  z_r = u W_r
    h = rg_lru(u) as rg_lru/triton.fused_scan_chunked,  out = h gelu(y)

Bytes per element, in data elements: 2 + 4 + 8 (bf16: 28, fp32: 56), fewer where u and the products fit in the
last-level cache. Bound by memory bandwidth.
Source: arXiv 2402.19427, sections 2.3 and 2.4; Blelloch, "Prefix sums and their applications" (1990), section 1.4.
"""

from __future__ import annotations

from griffin_kernels.ops.recurrent_block import _recurrent_launches as block
from griffin_kernels.ops.rg_lru import triton_fused_scan_chunked as recurrent

VARIANT = block.around(recurrent.VARIANT, summary="fused_scan with time split over programs")
