"""Native code: blocks of queries against their keys, products by torch's BLAS; see local_attention/numba_blocked.py.

p = 2^(s - lse),  ds = p (dout v^T - delta)
dq = ds k,  dk += ds^T q,  dv += p^T dout

A thread takes a part of the queries, block after block, and sums what they give to dk and dv where no other thread
writes; these shares are then added in order, so that the result does not depend on the threads. Two products before and
three after one pass over a row of scores. Bound by the products: 10 d operations per pair of a query and a key.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.ops.local_attention import _isolated, _numba_call
from griffin_kernels.ops.local_attention.numba_blocked import rank, reject


@dataclass(frozen=True)
class Config:
    """rows: queries times heads of a key head in a block. keys: in a tile of scores, at most.

    part: queries of a part, at least; short ones are shared out more evenly, and take more memory.
    """

    rows: int = 320
    keys: int = 512
    part: int = 256


@_isolated.backward
def run(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    *,
    config: Config,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (config.rows, config.keys, config.part)
    return _numba_call.backward(dout, q, k, v, out, lse, segment_pos, cu_seqlens, window, softcap, scale, *sizes)


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: each block reads its keys and values and adds to their shares, which are cleared and joined."""
    batch, time, heads, shared, window = (case[name] for name in ("B", "T", "Hq", "Hkv", "W"))
    block = _numba_call.block_of(batch, time, heads, shared, config.rows)
    part = _numba_call.part_of(time, window, block, config.part)
    per_block = 4 * 2 * 3 * min(window + block, case["S"]) * shared
    per_part = 4 * 2 * 4 * min(window + part, case["S"]) * shared
    per_query = 4 * heads * case.bytes_per_element()
    return batch * (-(-time // block) * per_block + -(-time // part) * per_part + time * per_query) * case["d"]


VARIANT = Variant(
    op="local_attention_bwd",
    name="numba.blocked",
    summary="native code, analytic, blocks of queries against their keys, products by torch's BLAS",
    run=run,
    config=Config,
    axes={"rows": (64, 160, 320, 640), "keys": (256, 512, 1088), "part": (128, 256, 1024)},
    reject=reject,
    rank=rank,
    traffic=traffic,
)
