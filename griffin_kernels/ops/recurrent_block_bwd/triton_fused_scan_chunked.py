"""triton.fused_scan with time split over programs, for all but the largest batches; gelu's gradient is in the scan.

    u = conv(x)                                     temporal_conv1d/triton.rows
    du, dy, gates                                   rg_lru_bwd/triton.fused_scan_chunked with the branch y
    dx, dconv_weight, dconv_bias, dconv_state       temporal_conv1d_bwd/triton.rows

dh = dout gelu(y) is formed where it is read, once to reduce the chunks and once to scan them; it never goes through
memory.

Bytes per element, in data elements: 3 to reduce (dout, y, z_r) and 10 to scan, the products ten, both convolutions
five (bf16: 56). Bound by memory bandwidth; one pass would be bound by latency and issue here.
Source: as rg_lru_bwd/triton.fused_scan_chunked, and arXiv 2402.19427, section 2.3.
"""

from __future__ import annotations

from griffin_kernels.ops.recurrent_block import _recurrent_launches as block
from griffin_kernels.ops.recurrent_block_bwd._recurrent_gradient_launches import launches
from griffin_kernels.ops.rg_lru_bwd import triton_fused_scan_chunked as recurrent

VARIANT = block.around(
    recurrent.VARIANT, "triton.fused_scan with time split over programs: reduce chunks, carry, scan", launches
)
