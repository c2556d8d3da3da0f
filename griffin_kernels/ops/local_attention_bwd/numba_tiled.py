"""Native code: blocks of queries, products in registers where something is seen; see local_attention/numba_tiled.py.

p = 2^(s - lse),  ds = p (dout v^T - delta)
dq = ds k,  dk += ds^T q,  dv += p^T dout

Parts of the queries and their shares are those of numba_blocked.py. bfloat16 is widened. Bound by the products: 10 d
operations per pair of a query and a key.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.local_attention import _isolated, _numba_attention, numba_tiled
from griffin_kernels.ops.local_attention_bwd import numba_blocked


@dataclass(frozen=True)
class Config(numba_blocked.Config):
    """As numba.blocked's."""

    keys: int = 256


VARIANT = backward_of(
    numba_tiled.VARIANT,
    _isolated.backward(numba_tiled.KERNELS.backward),
    summary="native code, analytic, products in registers, only where something is seen",
    config=Config,
    axes={"rows": (80, 160, 320, 640), "keys": (256, 512, 1024), "part": (128, 256, 1024)},
    reject=numba_tiled.problem,
    traffic=_numba_attention.gradient_traffic,
)
