"""Native code for bfloat16: blocks of queries, products on the matrix unit (AMX); see local_attention/numba_amx.py.

p = 2^(s - lse),  ds = p (dout v^T - delta)
dq = ds k,  dk += ds^T q,  dv += p^T dout

Parts of the queries and their shares are those of numba_blocked.py. p and ds are rounded to bfloat16 before they are
multiplied, as FlashAttention-2 does. Bound by what is done to a pair between its products: about 40 vector operations,
against 10 d operations of the unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.ops._native_amx import BLOCK
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.local_attention import _isolated, _numba_attention, _numba_matrix_gradient, numba_amx
from griffin_kernels.ops.local_attention._numba_rows import LANES
from griffin_kernels.ops.local_attention_bwd import numba_blocked

KERNELS = _numba_attention.Kernels(
    _numba_matrix_gradient,
    numba_amx.laid_out,
    unit=BLOCK,
    rows=BLOCK,
    spare=LANES,
    scales=False,
    scaled=False,
    arrays=3,
)


@dataclass(frozen=True)
class Config(numba_blocked.Config):
    """As numba.blocked's."""


VARIANT = backward_of(
    numba_amx.VARIANT,
    _isolated.backward(KERNELS.backward),
    summary="native code, analytic, bfloat16 products on the matrix unit of x86 processors",
    config=Config,
    axes={"rows": (80, 160, 320, 640), "keys": (256, 512, 1088), "part": (128, 256, 1024)},
    traffic=_numba_attention.gradient_traffic,
)
