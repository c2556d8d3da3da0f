"""What the compiled kernels of numba.blocked and numba.tiled share: their fields, and what they do to a query's row.

Kernels are C functions of one pointer, to a block of 64-bit integers (addresses, strides, sizes; see Fields). Work
items are taken from a shared counter in that block by however many threads call it; every item is the work of one
thread and does not depend on which. The pointer's type names the data's dtype: float32, or uint16 for bfloat16.

The G heads that share a key head are rows of one block. The keys that a query sees are one range, first_t .. e_t, so
that there are no masks: scores outside count as -3e38, whose power is 0.

Scores are in base 2: rows are scaled by scale log2(e), or with a softcap by 2 scale log2(e) / softcap, so that
tanh(s) = 1 - 2 / (2^s + 1) needs no further factor.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba

from griffin_kernels.ops._native import places
from griffin_kernels.ops.local_attention._numba_rows import (
    _HIDDEN,
    _LN2,
    _bend,
    _bent_slopes,
    _clear,
    _dot,
    _floats,
    _hide,
    _largest,
    _longs,
    _power,
    _powers,
    _read_row,
    _scale,
    _slopes,
    _sum,
    _write_row,
)

_njit: Any = numba.njit
_f32: Any = numba.float32

Headed = tuple[int, int, int, int]
"""A field of four integers: the address of a tensor, the stride of batch rows, that of steps, that of heads."""


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements; channels of q, out, dout and dq are contiguous.

    wide, padded: d and S; of numba.tiled in whole panels. k, v: float32 rows; of numba.tiled addresses of panels, from
    _numba_panels.py: across, [B, Hkv, padded / PANEL, d, PANEL], or pairs along d; down, [B, Hkv, wide / PANEL, padded,
    PANEL], or pairs along keys. What is of one variant, or of the gradient, is 0 for others.
    """

    q: Headed
    out: Headed
    k: Headed  # numba.tiled: across
    v: Headed  # numba.tiled: down; for the gradient across
    dout: Headed  # of the gradient
    places: int  # next place in scratch; every thread takes one
    items: int  # B * Hkv * pieces, in that order
    pieces: int  # of time: blocks, or for the gradient parts, of which the last begin first
    block: int  # queries in a block
    time: int  # T
    keys: int  # S
    padded: int
    shared: int  # Hkv
    group: int  # G = Hq / Hkv
    d: int
    wide: int
    tile: int  # keys in a tile of scores, at most
    pitch: int  # from one row of scores to the next: at least tile, rounded up to LANES
    window: int
    first: int  # int64 [B, T]: the first key that each query sees
    first_batch: int
    lse: int  # float32 [B, Hq, T], or 0
    scratch: int  # float32 [threads, scratch_place]
    scratch_place: int
    factors: int  # float32: of q's rows; softcap log2(e); of dq; of dk, whose queries have that of q already
    capped: int  # 1: scores are bent
    sgemm: int  # numba.blocked: Blas.sgemm
    set_threads: int  # numba.blocked: Blas.set_threads
    k_down: int  # numba.tiled, of the gradient
    dq: int  # of the gradient, from here on; contiguous, as q
    part: int  # queries of an item, a multiple of block
    reach: int  # keys that they see, at most; in whole panels from the beginning of one
    dk: int  # float32 [items, reach, wide]
    dv: int  # float32 [items, reach, wide]


AT = places(Fields)


@_njit
def at(f: Any, tensor: int, batch: int, t: int, head: int) -> int:
    """Index of a row of one of the tensors whose strides are fields."""
    return batch * f[tensor + 1] + t * f[tensor + 2] + head * f[tensor + 3]


@_njit
def located(f: Any, item: int) -> tuple[int, int, int, int]:
    """(row of B * Hkv, piece of time, batch row, first query head) of an item."""
    row = item // f[AT.pieces]
    return row, item % f[AT.pieces], row // f[AT.shared], row % f[AT.shared] * f[AT.group]


@_njit
def firsts(f: Any, batch: int, start: int) -> Any:
    """The first keys that the queries from ``start`` on see."""
    return _longs(f[AT.first], batch * f[AT.first_batch] + start)


@_njit
def first_of(first: Any, begin: int, end: int) -> int:
    """The first key that some of a block's queries begin .. end - 1 sees."""
    low = first[begin]
    for t in range(begin + 1, end):
        low = min(low, first[t])
    return low


@_njit
def weigh(f: Any, values: Any, seen: int, after: int, whole: int, r: int, largest: Any, total: Any, out: Any) -> None:
    """A row of ``whole`` scores becomes weights, those outside seen .. after - 1 zero; what came before is scaled down.

    largest, total: of every row so far, this being row r. out: weighted values of the row so far.
    """
    if f[AT.capped]:
        _bend(values, _floats(f[AT.factors], 1)[0], whole)
    _hide(values, seen, after, whole)
    top = max(largest[r], _largest(values, whole))
    # weights of a row that has seen nothing yet are 0
    shift = max(top, _f32(0.5 * _HIDDEN))
    _powers(values, shift, whole)
    if total[r] > 0:
        shrunk = _power(largest[r] - shift)
        total[r] *= shrunk
        _scale(out, shrunk, f[AT.wide])
    total[r] += _sum(values, whole)
    largest[r] = top


@_njit
def write_weighted(data: Any, f: Any, batch: int, t: int, head: int, row: Any, largest: float, total: float) -> None:
    """out and lse of a query."""
    _write_row(data, f[AT.out], at(f, AT.out, batch, t, head), row, _f32(1) / total, f[AT.d])
    if f[AT.lse]:
        lse = _floats(f[AT.lse], (batch * f[AT.shared] * f[AT.group] + head) * f[AT.time] + t)
        lse[0] = _f32(_LN2) * largest + math.log(total)


@_njit
def read_gradient(data: Any, f: Any, batch: int, t: int, head: int, upstream: int, query: int) -> tuple[float, float]:
    """dout to ``upstream`` and q, scaled, to ``query``; delta, and lse in base 2."""
    d = f[AT.d]
    _read_row(data, f[AT.dout], at(f, AT.dout, batch, t, head), upstream, _f32(1), d)
    # the query's place holds out for a moment
    _read_row(data, f[AT.out], at(f, AT.out, batch, t, head), query, _f32(1), d)
    delta = _dot(_floats(upstream, 0), _floats(query, 0), d)
    _read_row(data, f[AT.q], at(f, AT.q, batch, t, head), query, _floats(f[AT.factors], 0)[0], d)
    lse = _floats(f[AT.lse], (batch * f[AT.shared] * f[AT.group] + head) * f[AT.time] + t)[0]
    return delta, _f32(1 / _LN2) * lse


@_njit
def slope(f: Any, scores: Any, products: Any, lse: float, delta: float, whole: int) -> None:
    """A row of scores becomes weights, and one of products of dout and v the scores' gradient."""
    if f[AT.capped]:
        cap = _floats(f[AT.factors], 1)[0]
        _bend(scores, cap, whole)
        _bent_slopes(scores, products, lse, delta, _f32(1) / cap, whole)
    else:
        _slopes(scores, products, lse, delta, whole)


@_njit
def clear_unseen(scores: Any, products: Any, seen: int, after: int, width: int) -> None:
    """Zeros outside seen .. after - 1 of ``width``."""
    _clear(scores, 0, seen)
    _clear(products, 0, seen)
    _clear(scores, after, width)
    _clear(products, after, width)


@_njit
def write_dq(data: Any, f: Any, batch: int, t: int, head: int, row: Any, factor: float) -> None:
    """dq of a query."""
    index = ((batch * f[AT.time] + t) * f[AT.shared] * f[AT.group] + head) * f[AT.d]
    _write_row(data, f[AT.dq], index, row, factor, f[AT.d])
