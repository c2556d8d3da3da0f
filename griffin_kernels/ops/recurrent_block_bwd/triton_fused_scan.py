"""The convolution again, one backward pass that takes gelu's gradient along, the convolution's gradient.

    u = conv(x)                                     temporal_conv1d/triton.rows
    products  z = u [W_i W_r]
    scan      dh = dout gelu(y), dy = dout h gelu'(y), and all of rg_lru_bwd/triton.fused_scan on the way
    sums, products                                  as there: du
    dx, dconv_weight, dconv_bias, dconv_state       temporal_conv1d_bwd/triton.rows

The scan reads h one step back, for h_{t-1}; what it read for one step is h_t of the next that it visits, so that dy
costs no stream but y and dy themselves. dh never goes through memory.

Bytes per element of the scan: ten data elements (bf16: 20); the products ten more, both convolutions five. It costs two
special functions per element more than rg_lru_bwd/triton.fused_scan. Bound by memory bandwidth.
float32 on the way as there; u and du are rounded to the data's dtype.
Source: the chain rule on arXiv 2402.19427, sections 2.3 and 2.4.
"""

from __future__ import annotations

from griffin_kernels.ops.recurrent_block import _recurrent_launches as block
from griffin_kernels.ops.recurrent_block_bwd._recurrent_gradient_launches import launches
from griffin_kernels.ops.rg_lru_bwd import triton_fused_scan as recurrent

VARIANT = block.around(
    recurrent.VARIANT, "convolutions by rows; gelu's gradient inside RG-LRU's one backward pass", launches
)
