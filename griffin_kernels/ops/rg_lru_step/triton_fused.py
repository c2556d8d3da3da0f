"""One launch in place: gate products by matrix instructions, gates, state and output before anything leaves registers.

    z = x W + b,  i, r = sigmoid(z),  a = exp(-8 softplus(a_param) r),  h = a h + sqrt(1 - a^2) i x

A program computes ``block_n`` channels of a gate block for ``block_b`` batch rows. Its sums are channels by rows, W^T
times x^T, so that a short batch fills the instructions' short side: 16 rows waste nothing. ``block_k`` rows of both
weights at a time are on their way to shared memory while earlier ones are multiplied. The weights, 2 D n data elements
(2.6 MB in bfloat16 at D = 2560, n = 256), are the traffic: bound by how many programs ask for them at once, up to some
hundred rows. 5 special functions an element, once per token: they do not count.

Numerics: x is multiplied in its own dtype, sums, gates and state are float32; float32 products are not rounded to TF32.
Source: arXiv 2402.19427, section 2.4.
"""

from __future__ import annotations

from griffin_kernels.contract import Variant
from griffin_kernels.ops.rg_lru_step import _triton_lru_step as lru

VARIANT = Variant(
    op="rg_lru_step",
    name="triton.fused",
    summary="one launch in place, gates by matrix instructions",
    config=lru.Dot,
    axes=lru.DOT_AXES,
    reject=lru.dot_unfit,
    rank=lambda case, device: 30 if case["B"] > 4 else 20,  # the default where a batch fills much of an instruction
    launches=lambda call, outputs, config: [config.launch(call, outputs, "y")],
)
