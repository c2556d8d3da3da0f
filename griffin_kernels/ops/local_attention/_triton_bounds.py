"""Which keys each query sees, found once per call where documents, windows to the right or other keys bound them."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.strides import far


class Bounds(NamedTuple):
    """The first keys that queries see, [B or 1,T], its stride along the batch, and the last keys likewise.

    last: None where that is a query's own key, which it is unless ``right`` more are within reach.
    blind: a constant where queries may see no key, whose last is then below their first, and where own keys are not all
    as far from their queries; else None.
    """

    at: Any
    batch: Any
    last: Any
    right: Any
    blind: Any


@triton.jit
def sequence_of(cu_seqlens, query, count, steps):
    """The last of ``count`` sequences that begins at or before each query, found by halving ``steps`` times."""
    below = query * 0
    above = below + count
    for _ in range(steps):
        middle = (below + above) // 2
        later = tl.load(cu_seqlens + middle) > query
        below = tl.where(later, below, middle)
        above = tl.where(later, middle, above)
    return below


@triton.jit
def keys_of(cu_seqlens, cu_seqlens_k, query, count, steps):
    """(own key, first of the sequence, the one after its last) of each query of packed sequences with packed keys.

    A query after the last sequence has no key from its first one on.
    """
    sequence = sequence_of(cu_seqlens, query, count, steps)
    after = tl.load(cu_seqlens + sequence + 1)
    end = tl.load(cu_seqlens_k + sequence + 1)
    begin = tl.where(query < after, tl.load(cu_seqlens_k + sequence), end)
    return query + (end - after), begin, end


@triton.jit(do_not_specialize=["T", "S", "count", "steps", "window"])
def first_keys(
    segment_pos, cu_seqlens, cu_seqlens_k, first, T, S, count, steps, window, pos_batch, POS_STEP, BLOCK: tl.constexpr
):
    """The first key that each query sees: first [B or 1, T] int32. Grid: (ceil(T / block), B or 1).

    count: sequences in cu_seqlens, and in cu_seqlens_k [count + 1]. steps: halvings that find one of them.
    """
    row = tl.cast(tl.program_id(1), tl.int64)
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = query < T
    own = query + (S - T)
    if cu_seqlens_k is not None:
        own, begin, end = keys_of(cu_seqlens, cu_seqlens_k, query, count, steps)
    start = tl.maximum(own - window + 1, 0)
    if segment_pos is not None:
        place = tl.load(segment_pos + row * pos_batch + query.to(tl.int64) * far(POS_STEP), mask=inside, other=0)
        # a position below 0 counts as 0; one beyond the keys is that of a document whose beginning is not there
        place = tl.minimum(tl.maximum(place, 0), own.to(tl.int64))
        start = tl.maximum(start, own - place.to(tl.int32))
    if cu_seqlens_k is not None:
        start = tl.minimum(tl.maximum(start, begin), end)
    elif cu_seqlens is not None:
        start = tl.maximum(start, tl.load(cu_seqlens + sequence_of(cu_seqlens, query, count, steps)))
    tl.store(first + row * T + query, start, mask=inside)


@triton.jit(do_not_specialize=["T", "S", "count", "steps", "right"])
def last_keys(
    segment_pos, cu_seqlens, cu_seqlens_k, last, T, S, count, steps, right, pos_batch, POS_STEP, BLOCK: tl.constexpr
):
    """The last key that each query sees: last [B or 1, T] int32. As in ``first_keys``."""
    AHEAD: tl.constexpr = 16
    row = tl.cast(tl.program_id(1), tl.int64)
    begin = tl.program_id(0) * BLOCK
    query = begin + tl.arange(0, BLOCK)
    inside = query < T
    end = tl.minimum(query + right, T - 1)
    if segment_pos is not None:
        for start in range(begin, tl.minimum(begin + BLOCK + right, T), AHEAD):
            later = start + tl.arange(0, AHEAD)
            where = segment_pos + row * pos_batch + later.to(tl.int64) * far(POS_STEP)
            opens = tl.where(tl.load(where, mask=later < T, other=1) <= 0, later, T)
            before = tl.where(opens[None, :] > query[:, None], opens[None, :] - 1, T)
            end = tl.minimum(end, tl.min(before, axis=1))
    if cu_seqlens is not None:
        end = tl.minimum(end, tl.load(cu_seqlens + sequence_of(cu_seqlens, query, count, steps) + 1) - 1)
    if cu_seqlens_k is not None:
        own, _, _ = keys_of(cu_seqlens, cu_seqlens_k, query, count, steps)
        end += own - query
    else:
        end += S - T
    tl.store(last + row * T + query, end, mask=inside)


@triton.jit
def load_first(first, lane, query, mask=None, other=None):
    """The first keys that a lane's queries see."""
    return tl.load(first.at + lane.batch * first.batch + query, mask=mask, other=other)


@triton.jit
def are_blind(first, lane, query):
    """Which of a lane's queries see no key, where ``first`` says that there may be such."""
    return load_last(first, lane, query) < load_first(first, lane, query)


@triton.jit
def load_last(first, lane, query, mask=None, other=None):
    """The last keys that a lane's queries see, where ``first`` says."""
    return tl.load(first.last + lane.batch * first.batch + query, mask=mask, other=other)
