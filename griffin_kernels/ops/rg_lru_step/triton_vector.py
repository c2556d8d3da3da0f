"""One launch in place for a few rows: gate products by multiplying and adding, every load of weights in flight at once.

    z = x W + b,  i, r = sigmoid(z),  a = exp(-8 softplus(a_param) r),  h = a h + sqrt(1 - a^2) i x

A program holds ``block_n`` columns of both of a gate block's matrices in registers, loaded in one go 16 bytes a
thread, and multiplies one batch row after the other: no tensor cores, which would work on 16 rows, and no loop for the
memory to wait for. At n = 256, 32 columns are 32 KB of bfloat16, and D = 2560 makes 80 such programs: all 2.6 MB of
weights are in flight together, and latency binds before bandwidth does. Sums go across the warps once per row and gate.

Numerics: products and sums in float32, as gates and state. Source: arXiv 2402.19427, section 2.4.
"""

from __future__ import annotations

from griffin_kernels.contract import Variant
from griffin_kernels.ops.rg_lru_step import _triton_lru_step as lru

VARIANT = Variant(
    op="rg_lru_step",
    name="triton.vector",
    summary="one launch in place for a few rows, all weights in flight at once",
    config=lru.Vector,
    axes=lru.VECTOR_AXES,
    reject=lru.vector_unfit,
    rank=lambda case, device: 25,
    launches=lambda call, outputs, config: [config.launch(call, outputs, "y")],
)
