"""Tree scan of complex (a, x) pairs by recursive doubling: ceil(log2 T) passes over the whole tensor.

linear_scan/eager_associative.py on complex64 (complex128) views of the pairs: what JAX's associative_scan does in S5
and LRU, with few launches and 5 log2(T) streams where one pass needs 3. Where a gate exceeds 1 in modulus it goes step
by step.
"""

from __future__ import annotations

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.complex_scan import _pair_calls
from griffin_kernels.ops.linear_scan import eager_associative

core = eager_associative.core

VARIANT = Variant(
    op="complex_scan",
    name="eager.associative",
    summary="recursive doubling over the whole tensor",
    run=_pair_calls.eager(core)[0],
    config=NoConfig,
    rank=eager_associative.VARIANT.rank,
)
