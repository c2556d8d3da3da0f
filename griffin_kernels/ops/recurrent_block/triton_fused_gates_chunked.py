"""triton.fused_gates with the time of the second pass split over programs, for long sequences of few channels.

    u = temporal_conv1d(x)                                                 first pass, split over time anyway
    h = rg_lru(u) as rg_lru/triton.fused_gates_chunked,  out = h gelu(y)

Bytes per element, in data elements: 2 + 4 (bf16: 12), u of the second reading mostly from cache; scratch as there.
Bound by instruction issue: products and gates are made twice.
Source: arXiv 2402.19427, sections 2.3 and 2.4; Blelloch, "Prefix sums and their applications" (1990), section 1.4.
"""

from __future__ import annotations

from griffin_kernels.ops.recurrent_block import _recurrent_launches as block
from griffin_kernels.ops.rg_lru import triton_fused_gates_chunked as recurrent

VARIANT = block.around(recurrent.VARIANT, summary="fused_gates with time split over programs")
