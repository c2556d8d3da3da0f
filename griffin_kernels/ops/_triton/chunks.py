"""Time split over programs: what triton.chunked needs around the scan itself, forward and backward alike.

A chunk is an affine map of the state that enters it, s -> P s + S with P the product of its gates. Phase 1 (reduce)
computes (P, S) of every chunk but the last, phase 2 (carry) runs through them and leaves the state that enters each
chunk, phase 3 is the caller's. Backward, the state is c_t = a_t (c_{t+1} + dh_t), visited from the last step.

Packed sequences cut the map where a sequence starts: ``enter`` and ``leave`` [T] int32 hold the sequence whose first,
or last, visited step that is, and -1 elsewhere. ``cut`` [B,chunks] int32 tells which chunks a reset or a start cuts:
what enters those does not count, not even as a factor of P = 0.

A product of gates beyond [-1, 1] may overflow where the state does not, or underflow and grow again. Phase 1 gives NaN
for it, and phase 2 goes through such a chunk step by step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.launch import Claims, Launch, architecture
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.gating import Gating, gate_of, gate_rows, input_of
from griffin_kernels.ops._triton.scan import gates_times, span
from griffin_kernels.ops._triton.tensors import (
    Marks,
    Rows,
    State,
    at,
    dense,
    dense_state,
    later,
    load_flags,
    load_rows,
    load_state,
    own_channels,
    rows,
    state,
    store_row,
    store_state,
)

CARRY_ROWS = 32
CARRY_D = 64


class Maps(NamedTuple):
    """Chunks as maps of the state that enters: product, result [B,chunks,D]; cut [B,chunks] or None."""

    product: Any
    result: Any
    cut: Any


@triton.jit(do_not_specialize=["T"])
def linear_scan_mark(
    cu_seqlens, marks, T, D: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Marks one packed sequence per program; a sequence without steps hands its state [N,D] on to final [N,D]."""
    row = tl.program_id(0)
    _, first, steps = span(row, cu_seqlens, T, REVERSE)
    given, final = marks.state, marks.final  # Triton 3.6 forgets constants of arguments in branches and loops
    if steps > 0:
        last = first + 1 - steps if REVERSE else first - 1 + steps
        tl.store(marks.enter.at + first, row)
        tl.store(marks.leave.at + last, row)
    elif final is not None:
        for block in range((D + BLOCK_D - 1) // BLOCK_D):
            channels = own_channels(block, D, BLOCK_D)[1]
            store_state(final, row, load_state(given, row, channels, ACC), channels)


@triton.jit
def walk(x, a, carry, channels, gating, BACKWARD: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr):
    """The carry [block_d] through a chunk without cuts; rows are at its first step."""
    ACC: tl.constexpr = carry.dtype
    for _ in range(CHUNK):
        value = load_rows(x, channels, 1, 0.0, 1, True)[0].to(ACC)
        step = load_rows(a, channels, 1, 0.0, 1, True)[0]
        gate = gate_of(step, gating, ACC).to(ACC)
        if BACKWARD:
            carry = gates_times(gate, carry + value, PAIRS, True)
        else:
            carry = gates_times(gate, carry, PAIRS, False) + input_of(value, step, gate, gating)
        x, a = later(x, 1), later(a, 1)
    return carry


SPILLED = {"sm_100": "16 bytes a thread, none of them in the loop"}
"""Of the scan over chunks, by architecture: why that is accepted."""


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_carry(
    maps,
    state,
    x,
    a,
    T,
    chunks,
    gating,
    D: tl.constexpr,
    REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """state: [B,D] or None. maps.result[c] becomes the state that leaves chunk c. PAIRS: channels make up numbers.

    x, a: of phase 1, for chunks whose product is of no use; None where no gate can be beyond [-1, 1]. There a
    product of zero, which is what a cut makes of it, lets nothing through.
    """
    SIGN: tl.constexpr = -1 if REVERSE else 1
    block, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    batch = tl.cast(block, tl.int64)
    carry = load_state(state, batch, channels, ACC)
    product, result = dense(maps.product, batch * chunks, D, 1), dense(maps.result, batch * chunks, D, 1)
    cut = at(maps.cut, 0, batch * chunks, 1)
    for begin in range(0, chunks, ROWS):
        ps = load_rows(product, channels, chunks - begin, 1.0, ROWS, True)
        ss = load_rows(result, channels, chunks - begin, 0.0, ROWS, True)
        stops = load_flags(cut, chunks - begin, 0, ROWS, True)
        lost = 0
        if x is not None:
            useless = tl.zeros((BLOCK_D,), dtype=tl.int1)
            for u in tl.static_range(ROWS):
                useless = useless | (ps[u] != ps[u]) | (ss[u] - ss[u] != 0.0)
            lost = tl.max(useless.to(tl.int32), axis=0)
        if lost == 0:
            for u in tl.static_range(ROWS):
                after = gates_times(ps[u], carry, PAIRS, False) + ss[u]
                if cut is not None:
                    after = tl.where(stops[u] != 0, ss[u], after)
                elif x is None:
                    after = tl.where(ps[u] == 0.0, ss[u], after)
                carry = after
                store_row(result, u, carry, channels, chunks - begin, True)
        else:
            for c in range(tl.minimum(ROWS, chunks - begin)):
                p = load_rows(later(product, c), channels, 1, 1.0, 1, True)[0]
                s = load_rows(later(result, c), channels, 1, 0.0, 1, True)[0]
                after = gates_times(p, carry, PAIRS, False) + s
                stop = False
                if cut is not None:
                    stop = tl.load(cut.at + c) != 0
                    after = tl.where(stop, s, after)
                useless = (p != p) | (s - s != 0.0)
                if x is not None:
                    if (tl.max(useless.to(tl.int32), axis=0) != 0) & (stop == 0):
                        step = tl.cast(begin + c, tl.int64) * CHUNK
                        first = T - 1 - step if REVERSE else step
                        values, gates = at(x, batch, first, SIGN), at(a, batch, first, SIGN)
                        walked = walk(values, gates, carry, channels, gating, BACKWARD, CHUNK, PAIRS)
                        after = tl.where(useless, walked, after)
                carry = after
                store_row(later(result, c), 0, carry, channels, 1, True)
        product, result = later(product, ROWS), later(result, ROWS)
        if cut is not None:
            cut = later(cut, ROWS)


@triton.jit
def own_chunk(piece, chunks, T, CHUNK: tl.constexpr):
    """(batch, chunk, its first step as visited, steps) of program ``piece`` of B * chunks."""
    chunk = tl.cast(piece % chunks, tl.int64)
    begin = chunk * CHUNK
    return tl.cast(piece // chunks, tl.int64), chunk, begin, tl.cast(tl.minimum(T - begin, CHUNK), tl.int32)


@triton.jit
def entering_chunk(result, state, batch, chunk, chunks, channels, D: tl.constexpr, ACC: tl.constexpr = tl.float32):
    """The state [block_d] that enters a chunk: the given one for the first, else what left the chunk before.

    result: [B,chunks,D], the states that leave all chunks but the last.
    """
    carry = load_state(state, batch, channels, ACC, chunk == 0)
    if result is not None:
        carry += load_state(State(result, D, 1), batch * chunks + chunk - 1, channels, ACC, chunk > 0)
    return carry


class ChunkedInputs(NamedTuple):
    """What phase 1 reads: x [B,T,D], a [Ba,Ta,D], and how; reverse: time is visited from its end."""

    x: Tensor
    a: Tensor
    chunk: int
    reverse: bool
    backward: bool
    gating: Gating | None = None


def marked(
    x: Tensor, cu_seqlens: Tensor | None, given: Tensor | None, final: Tensor | None, reverse: bool
) -> tuple[Marks | None, list[Launch]]:
    """(marks, launches that fill them); nothing where x [B,T,D] is not of packed sequences. given: [N,D], as final."""
    if cu_seqlens is None:
        return None, []
    time, width = x.shape[1:]
    sign = tl.constexpr(-1 if reverse else 1)
    enter, leave = torch.full((2, time), -1, dtype=torch.int32, device=cu_seqlens.device)
    marks = Marks(Rows(enter, 0, sign, None), Rows(leave, 0, sign, None), state(given), dense_state(final))
    launch = Launch(
        kernel=linear_scan_mark,
        grid=(cu_seqlens.shape[0] - 1,),
        args={"cu_seqlens": cu_seqlens, "marks": marks, "T": time},
        constexprs={"D": width, "REVERSE": reverse, "ACC": host.wide(x.dtype), "BLOCK_D": 128},
    )
    return marks, [launch]


def carry(
    product: Tensor,
    result: Tensor,
    given: Tensor | None,
    cut: Tensor | None = None,
    source: ChunkedInputs | None = None,
    pairs: bool = False,
) -> Launch:
    """Phase 2: result [B,C-1,D] becomes the states that leave the chunks. product, result: phase 1's; given: [B,D].

    Packed sequences have no ``given`` here: they bring their own, at the steps where they start. cut: int32 [B,C-1],
    which chunks let nothing through. source: for gates of any size; None where all are within [-1, 1]. pairs: channels
    2 k and 2 k + 1 are a complex number's.
    """
    batch, chunks, width = product.shape
    x, a, chunk, reverse, backward, gating = source or (None, None, 0, False, False, None)
    stops = None if cut is None else Rows(cut, 0, tl.constexpr(1), None)
    return Launch(
        kernel=linear_scan_carry,
        grid=(batch * triton.cdiv(width, CARRY_D),),
        args={
            "maps": Maps(product, result, stops),
            "state": state(given),
            "x": rows(x, reverse),
            "a": gate_rows(a, x, reverse),
            "T": 0 if x is None else x.shape[1],
            "chunks": chunks,
            "gating": gating,
        },
        constexprs={
            "D": width,
            "REVERSE": reverse,
            "BACKWARD": backward,
            "ACC": host.wide(product.dtype),
            "CHUNK": chunk,
            "ROWS": CARRY_ROWS,
            "BLOCK_D": CARRY_D,
            "PAIRS": pairs,
        },
        num_warps=1,
        tile=CARRY_ROWS * CARRY_D,
        claims=Claims(spills=SPILLED.get(architecture(product), "")),
        rarely=("x", "a"),
    )
