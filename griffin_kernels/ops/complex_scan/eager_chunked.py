"""Time cut into chunks of complex numbers that are scanned side by side, then joined by a scan of their ends.

linear_scan/eager_chunked.py on complex64 (complex128) views of the pairs: chunk + T / chunk launches in place of T.
Where a gate exceeds 1 in modulus it goes step by step, since a product may then overflow where the state does not.
"""

from __future__ import annotations

from griffin_kernels.contract import Variant
from griffin_kernels.ops.complex_scan import _pair_calls
from griffin_kernels.ops.linear_scan import eager_chunked

core = eager_chunked.core

VARIANT = Variant(
    op="complex_scan",
    name="eager.chunked",
    summary="chunks of time side by side, joined by a scan of their ends",
    run=_pair_calls.eager(core)[0],
    config=eager_chunked.Config,
    axes=eager_chunked.VARIANT.axes,
    rank=eager_chunked.rank,
)
