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

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.launch import Claims, Launch, architecture
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.scan import span
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
    marks_at,
    marks_later,
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


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_reduce(
    x,
    a,
    reset,
    marks,
    maps,
    T,
    chunks,
    D: tl.constexpr,
    REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(P, S) of one whole chunk: x, a [B,T,D] -> maps. REVERSE: time is visited backwards."""
    SIGN: tl.constexpr = -1 if REVERSE else 1
    piece, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    batch = tl.cast(piece // chunks, tl.int64)
    begin = tl.cast(piece % chunks, tl.int64) * CHUNK
    first = T - 1 - begin if REVERSE else begin
    x, a, reset = at(x, batch, first, SIGN), at(a, batch, first, SIGN), at(reset, batch, first, SIGN)
    marks = marks_at(marks, first, SIGN)
    p = tl.full((BLOCK_D,), 1.0, dtype=ACC)
    s = tl.zeros((BLOCK_D,), dtype=ACC)
    most = tl.zeros((BLOCK_D,), dtype=ACC)  # the largest |a|
    stopped = 0
    for _ in range(CHUNK // BLOCK_T):
        xs = load_rows(x, channels, BLOCK_T, 0.0, BLOCK_T, False)
        gates = load_rows(a, channels, BLOCK_T, 1.0, BLOCK_T, False)
        resets = load_flags(reset, BLOCK_T, 0, BLOCK_T, False)
        if marks is not None:
            enters = load_flags(marks.enter, BLOCK_T, -1, BLOCK_T, False)
        for u in tl.static_range(BLOCK_T):
            gate = gates[u].to(ACC)
            if marks is not None:
                starts = enters[u] >= 0
                p = tl.where(starts, 0.0, p)
                s = tl.where(starts, load_state(marks.state, enters[u], channels, ACC, starts), s)
                stopped |= starts.to(tl.int32)
            if reset is not None:
                stop = resets[u] != 0
                stopped |= stop.to(tl.int32)
                if not BACKWARD:
                    p = tl.where(stop, 0.0, p)
                    s = tl.where(stop, 0.0, s)
            most = tl.maximum(most, tl.abs(gate))
            p = gate * p
            s = gate * (s + xs[u].to(ACC)) if BACKWARD else gate * s + xs[u].to(ACC)
            if reset is not None and BACKWARD:
                p = tl.where(stop, 0.0, p)
                s = tl.where(stop, 0.0, s)
        x, a = later(x, BLOCK_T), later(a, BLOCK_T)
        if reset is not None:
            reset = later(reset, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    store_state(State(maps.product, D, 1), piece, tl.where(most <= 1.0, p, float("nan")), channels)
    store_state(State(maps.result, D, 1), piece, s, channels)
    if maps.cut is not None:
        tl.store(maps.cut + piece, stopped)  # every block of channels the same


@triton.jit
def walk(x, a, carry, channels, BACKWARD: tl.constexpr, CHUNK: tl.constexpr):
    """The carry [block_d] through a chunk without cuts; rows are at its first step."""
    ACC: tl.constexpr = carry.dtype
    for _ in range(CHUNK):
        value = load_rows(x, channels, 1, 0.0, 1, True)[0].to(ACC)
        gate = load_rows(a, channels, 1, 0.0, 1, True)[0].to(ACC)
        carry = gate * (carry + value) if BACKWARD else gate * carry + value
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
    D: tl.constexpr,
    REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """state: [B,D] or None. maps.result[c] becomes the state that leaves chunk c.

    x, a: [B,T,D] of phase 1, for chunks whose product is of no use; None where no gate can be beyond [-1, 1]. There a
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
                after = ps[u] * carry + ss[u]
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
                after = p * carry + s
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
                        walked = walk(values, gates, carry, channels, BACKWARD, CHUNK)
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
    """What phase 1 reads: x, a [B,T,D], and how; reverse: time is visited from its end."""

    x: Tensor
    a: Tensor
    chunk: int
    reverse: bool
    backward: bool


def marked(
    cu_seqlens: Tensor | None,
    given: Tensor | None,
    final: Tensor | None,
    time: int,
    width: int,
    reverse: bool,
    acc: Any,
) -> tuple[Marks | None, list[Launch]]:
    """(marks, launches that fill them); nothing where there are no packed sequences. given: [N,D], as final."""
    if cu_seqlens is None:
        return None, []
    sign = tl.constexpr(-1 if reverse else 1)
    enter, leave = torch.full((2, time), -1, dtype=torch.int32, device=cu_seqlens.device)
    marks = Marks(Rows(enter, 0, sign, None), Rows(leave, 0, sign, None), state(given), dense_state(final))
    launch = Launch(
        kernel=linear_scan_mark,
        grid=(cu_seqlens.shape[0] - 1,),
        args={"cu_seqlens": cu_seqlens, "marks": marks, "T": time},
        constexprs={"D": width, "REVERSE": reverse, "ACC": acc, "BLOCK_D": 128},
    )
    return marks, [launch]


def reduce(
    source: ChunkedInputs, given: Tensor | None, reset: Tensor | None, marks: Marks | None, config: Any
) -> tuple[Tensor | None, list[Launch]]:
    """(states that leave the chunks [B,C-1,D] in the accumulator's dtype, launches); nothing for a single chunk.

    given: the state that enters time [B,D]; with marks it is theirs that counts. config: block_t, block_d, num_warps.
    """
    x, a, chunk, reverse, backward = source
    batch, time, width = x.shape
    chunks = triton.cdiv(time, chunk) - 1
    if chunks == 0:
        return None, []
    product, result = torch.empty((2, batch, chunks, width), dtype=accumulator(x.dtype), device=x.device)
    cut = None
    if reset is not None or marks is not None:
        cut = torch.empty((batch, chunks), dtype=torch.int32, device=x.device)
    args = {
        "x": rows(x, reverse),
        "a": rows(a, reverse),
        "reset": rows(reset, reverse),
        "marks": None if marks is None else marks._replace(leave=None, final=None),
        "maps": Maps(product, result, cut),
        "T": time,
        "chunks": chunks,
    }
    constexprs = {"REVERSE": reverse, "BACKWARD": backward, "ACC": host.wide(x.dtype), "CHUNK": chunk}
    whole = host.channel_launch(linear_scan_reduce, batch * chunks, (x, a), config, args, constexprs)
    return result, [whole, carry(product, result, given if marks is None else None, cut, source)]


def carry(
    product: Tensor,
    result: Tensor,
    given: Tensor | None,
    cut: Tensor | None = None,
    source: ChunkedInputs | None = None,
) -> Launch:
    """Phase 2: result [B,C-1,D] becomes the states that leave the chunks. product, result: phase 1's; given: [B,D].

    Packed sequences have no ``given`` here: they bring their own, at the steps where they start. cut: int32 [B,C-1],
    which chunks let nothing through. source: for gates of any size; None where all are within [-1, 1].
    """
    batch, chunks, width = product.shape
    x, a, chunk, reverse, backward = source or (None, None, 0, False, False)
    stops = None if cut is None else Rows(cut, 0, tl.constexpr(1), None)
    return Launch(
        kernel=linear_scan_carry,
        grid=(batch * triton.cdiv(width, CARRY_D),),
        args={
            "maps": Maps(product, result, stops),
            "state": state(given),
            "x": rows(x, reverse),
            "a": rows(a, reverse),
            "T": 0 if x is None else x.shape[1],
            "chunks": chunks,
        },
        constexprs={
            "D": width,
            "REVERSE": reverse,
            "BACKWARD": backward,
            "ACC": host.wide(product.dtype),
            "CHUNK": chunk,
            "ROWS": CARRY_ROWS,
            "BLOCK_D": CARRY_D,
        },
        num_warps=1,
        tile=CARRY_ROWS * CARRY_D,
        claims=Claims(spills=SPILLED.get(architecture(product), "")),
        rarely=("x", "a"),
    )


def phases_before(
    reduce: Callable[..., Any],
    source: ChunkedInputs,
    call: Any,
    outputs: dict[str, Any],
    args: dict[str, Any],
    ends: tuple[str, str],
) -> tuple[list[Launch], dict[str, Any]]:
    """(marks (packed only), reduce and carry (more than one chunk only); arguments of phase 3).

    reduce: phases 1 and 2. args: of a kernel that does the whole scan, which names the states that enter and leave time
    as ``ends`` says, as ``call`` and ``outputs`` do.
    """
    entering, leaving = ends
    given = getattr(call, entering)
    time, width = source.x.shape[1:]
    acc = host.wide(source.x.dtype)
    marks, begin = marked(args.pop("cu_seqlens"), given, outputs[leaving], time, width, source.reverse, acc)
    result, steps = reduce(source, given, call.reset, marks)
    if marks is not None:  # they have these
        args |= dict.fromkeys(ends)
    return [*begin, *steps], args | {"marks": marks, "result": result, "chunks": triton.cdiv(time, source.chunk) - 1}


def traffic(case: Case, chunk: int, streams: int) -> int:
    """Bytes moved when nothing of what phase 1 read is still in cache: ``streams`` in phase 3, two more in phase 1."""
    rows = case["B"] * case["D"]
    before = triton.cdiv(case["T"], chunk) - 1
    size = case.bytes_per_element()
    # phase 1 writes P and S, phase 2 reads both and writes one, phase 3 reads that one
    scratch = 6 * rows * before * accumulator(case.torch_dtype).itemsize
    total: int = rows * size * (streams * case["T"] + 2 * before * chunk) + scratch
    return total
