"""What the kernels of the native variants are given: fields, and where a query's row and its keys are.

Kernels are C functions of one pointer, to a block of 64-bit integers (addresses, strides, sizes; see Fields). Work
items are taken from a shared counter in that block by however many threads call it; every item is the work of one
thread and does not depend on which. The pointer's type names the data's dtype: float32, or uint16 for bfloat16.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba
from numba import types

from griffin_kernels.ops._native import INT64, intrinsic, places

_njit: Any = numba.njit


def _array_at(kind: Any) -> Any:
    """A numba function ``(address, index) -> pointer`` to element ``index`` of an array of ``kind``."""

    @intrinsic
    def at(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = context.get_data_type(kind)
            return builder.gep(builder.inttoptr(args[0], element.as_pointer()), [args[1]])

        return types.CPointer(kind)(types.int64, types.int64), generate

    return at


floats, ints, shorts, longs = (_array_at(k) for k in (types.float32, types.int32, types.uint16, types.int64))


@intrinsic
def fields_of(typing: Any, data: Any) -> Any:
    """The integers that a kernel is given."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], INT64.as_pointer())

    return types.CPointer(types.int64)(data), generate


Headed = tuple[int, int, int, int]
"""A field of four integers: the address of a tensor, the stride of batch rows, that of steps, that of heads."""


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements; channels of q, out, dout and dq are contiguous.

    wide, padded: d and S; of numba.tiled and numba.amx in whole panels. k, v, k_down: float32 rows; of numba.tiled
    addresses of panels, from numba_tiled.py: across, [B, Hkv, padded / PANEL, d, PANEL], or pairs along d; down,
    [B, Hkv, wide / PANEL, padded, PANEL], or pairs along keys; of numba.amx of tiles, from _numba_matrix_unit.py. What
    is of one variant, or of the gradient, is 0 for others.
    """

    q: Headed
    out: Headed
    k: Headed  # numba.tiled, numba.amx: across
    v: Headed  # numba.tiled, numba.amx: down; for the gradient across
    k_down: Headed  # of the gradient: k, or k down
    dout: Headed  # of the gradient
    places: int  # next place in scratch; every thread takes one
    items: int  # B * Hkv * pieces, in that order
    pieces: int  # of time: blocks, or for the gradient parts, of which the last begin first
    block: int  # queries in a block
    unit: int  # keys of a tile and channels lie in whole multiples of it
    rows: int  # and the rows of a block of this
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
    right: int  # keys after its own that a query sees at most
    last: int  # the last ones, int64 [B, T] as the first, in rising order; 0 where that is a query's own
    lse: int  # float32 [B, Hq, T], or 0
    scratch: int  # float32 [threads, scratch_place]
    scratch_place: int
    factors: int  # float32: of q's rows; softcap log2(e); of products for dq, for dk; of dq when written
    capped: int  # 1: scores are bent
    sgemm: int  # numba.blocked: Blas.sgemm
    set_threads: int  # numba.blocked: Blas.set_threads
    pairs: int  # numba.tiled, numba.amx: 1 where q and weights are multiplied as pairs of bfloat16
    dq: int  # of the gradient, from here on; contiguous, as q
    part: int  # queries of an item, a multiple of block
    reach: int  # keys that they see, at most; in whole panels from the beginning of one
    bases: int  # int64 [pieces]: the first of them where that does not follow from ``window``; else 0
    dk: int  # float32 [items, reach, wide]
    dv: int  # float32 [items, reach, wide]
    dlse: int  # float32 [B, Hq, T], or 0


AT = places(Fields)


@_njit
def at(f: Any, tensor: int, batch: int, t: int, head: int) -> int:
    """Index of a row of one of the tensors whose strides are fields."""
    return batch * f[tensor + 1] + t * f[tensor + 2] + head * f[tensor + 3]


@_njit
def rounded_up(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit


@_njit
def located(f: Any, item: int) -> tuple[int, int, int, int]:
    """(row of B * Hkv, piece of time, batch row, first query head) of an item."""
    row = item // f[AT.pieces]
    return row, item % f[AT.pieces], row // f[AT.shared], row % f[AT.shared] * f[AT.group]


@_njit
def firsts(f: Any, batch: int, start: int) -> Any:
    """The first keys that the queries from ``start`` on see."""
    return longs(f[AT.first], batch * f[AT.first_batch] + start)


@_njit
def after_of(f: Any, batch: int, t: int) -> int:
    """The key after the last one that a query sees."""
    if f[AT.last]:
        return longs(f[AT.last], batch * f[AT.first_batch])[t] + 1
    return f[AT.keys] - f[AT.time] + t + 1


@_njit
def first_of(first: Any, begin: int, end: int) -> int:
    """The first key that some of a block's queries begin .. end - 1 sees."""
    low = first[begin]
    for t in range(begin + 1, end):
        low = min(low, first[t])
    return low
