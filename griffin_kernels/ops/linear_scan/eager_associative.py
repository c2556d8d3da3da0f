"""Tree scan of (a, x) pairs by recursive doubling: ceil(log2 T) passes over the whole tensor.

    (A, X) o (a, x) = (A a, a X + x);   after pass k every pair covers 2^k steps

Few launches, but every pass reads and writes everything: 5 log2(T) streams where one pass needs 3. Products of a
underflow to zero, which is what they mean while |a| <= 1; see ``_scan_eager.careful`` for other a. The scheme is that
of Hillis and Steele, CACM 29(12), 1986.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.linear_scan import _scan_eager


@_scan_eager.careful
def core(x: Tensor, a: Tensor, cut: Tensor | None, config: NoConfig) -> Tensor:
    """h [B,T,D] from x, a [B,T,D] within [-1, 1] and a zero state; see ``_scan_eager`` for cut."""
    time = x.shape[1]
    values, products = x.clone(), a
    stopped = cut  # a cut lies in the last `span` steps
    span = 1
    while span < time:
        # each step takes in the pair that ends `span` steps before it
        arriving = products[:, span:] * values[:, :-span]
        values[:, span:] += arriving if stopped is None else arriving.masked_fill_(stopped[:, span:, None], 0.0)
        if 2 * span < time:
            grown = products.clone()
            grown[:, span:] *= products[:, :-span]
            products = grown
            if stopped is not None:
                wider = stopped.clone()
                wider[:, span:] |= stopped[:, :-span]
                stopped = wider
        span *= 2
    return values


VARIANT = Variant(
    op="linear_scan",
    name="eager.associative",
    summary="recursive doubling over the whole tensor",
    run=through(_scan_eager.forward_and_product, core),
    config=NoConfig,
    rank=lambda case, device: 4,  # behind the chunked form, which moves fewer bytes
)
