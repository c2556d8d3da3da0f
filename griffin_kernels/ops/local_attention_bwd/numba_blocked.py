"""Native code: blocks of queries against their keys, products by torch's BLAS; see local_attention/numba_blocked.py.

p = 2^(s - lse),  ds = p (dout v^T - delta)
dq = ds k,  dk += ds^T q,  dv += p^T dout

A thread takes a part of the queries, block after block, and sums what they give to dk and dv where no other thread
writes; these shares are then added in order, so that the result does not depend on the threads. Two products before and
three after one pass over a row of scores. Bound by the products: 10 d operations per pair of a query and a key.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.local_attention import _isolated, _numba_attention, numba_blocked


@dataclass(frozen=True)
class Config(numba_blocked.Config):
    """As the forward pass's.

    part: queries of a part, at least; short ones are shared out more evenly, and take more memory.
    """

    rows: int = 320
    keys: int = 512
    part: int = 256


VARIANT = backward_of(
    numba_blocked.VARIANT,
    _isolated.backward(numba_blocked.KERNELS.backward),
    summary="native code, analytic, blocks of queries against their keys, products by torch's BLAS",
    config=Config,
    axes={"rows": (64, 160, 320, 640), "keys": (256, 512, 1088), "part": (128, 256, 1024)},
    traffic=_numba_attention.gradient_traffic,
)
