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

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.launch import Claims, Launch, architecture
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.scan import load_flags, load_rows, load_state, span
from griffin_kernels.ops._triton.strides import far

CARRY_ROWS = 32
CARRY_D = 64


@triton.jit(do_not_specialize=["T"])
def linear_scan_mark(
    cu_seqlens,
    state,
    enter,
    leave,
    final,
    T,
    state_row,
    D: tl.constexpr,
    STATE_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Marks one packed sequence per program; a sequence without steps hands its state [N,D] on to final [N,D]."""
    row = tl.program_id(0)
    _, first, steps = span(row, cu_seqlens, T, REVERSE)
    if steps > 0:
        last = first + 1 - steps if REVERSE else first - 1 + steps
        tl.store(enter + first, row)
        tl.store(leave + last, row)
    elif final is not None:
        for block in range((D + BLOCK_D - 1) // BLOCK_D):
            columns = block * BLOCK_D + tl.arange(0, BLOCK_D)
            value = load_state(state, row, state_row, columns, columns < D, STATE_CHANNEL, ACC, BLOCK_D)
            tl.store(final + tl.cast(row, tl.int64) * D + columns, value, mask=columns < D)


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_reduce(
    x,
    a,
    reset,
    enter,
    state,
    product,
    result,
    cut,
    T,
    chunks,
    x_batch,
    a_batch,
    reset_batch,
    state_row,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    RESET_STEP,
    STATE_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(P, S) of one whole chunk: x, a [B,T,D] -> product, result [B,chunks,D], cut [B,chunks] or None.

    REVERSE: time is visited backwards.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    MASKED: tl.constexpr = D % BLOCK_D != 0
    SIGN: tl.constexpr = -1 if REVERSE else 1
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    piece = tl.program_id(0) // BLOCKS
    batch = tl.cast(piece // chunks, tl.int64)
    begin = tl.cast(piece % chunks, tl.int64) * CHUNK
    first = T - 1 - begin if REVERSE else begin
    x += batch * x_batch + first * (SIGN * far(X_STEP))
    a += batch * a_batch + first * (SIGN * far(A_STEP))
    if reset is not None:
        reset += batch * reset_batch + first * (SIGN * far(RESET_STEP))
    if enter is not None:
        enter += first
    p = tl.full((BLOCK_D,), 1.0, dtype=ACC)
    s = tl.zeros((BLOCK_D,), dtype=ACC)
    most = tl.zeros((BLOCK_D,), dtype=ACC)  # the largest |a|
    stopped = 0
    for _ in range(CHUNK // BLOCK_T):
        xs = load_rows(x + columns * X_CHANNEL, inside, BLOCK_T, far(X_STEP), 0.0, BLOCK_T, MASKED, False)
        gates = load_rows(a + columns * A_CHANNEL, inside, BLOCK_T, far(A_STEP), 1.0, BLOCK_T, MASKED, False)
        resets = load_flags(reset, BLOCK_T, far(RESET_STEP), 0, BLOCK_T, False)
        enters = load_flags(enter, BLOCK_T, SIGN, -1, BLOCK_T, False)
        for u in tl.static_range(BLOCK_T):
            gate = gates[u].to(ACC)
            if enter is not None:
                starts = enters[u] >= 0
                start = load_state(state, enters[u], state_row, columns, inside & starts, STATE_CHANNEL, ACC, BLOCK_D)
                p = tl.where(starts, 0.0, p)
                s = tl.where(starts, start, s)
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
        x += BLOCK_T * far(X_STEP)
        a += BLOCK_T * far(A_STEP)
        if reset is not None:
            reset += BLOCK_T * far(RESET_STEP)
        if enter is not None:
            enter += BLOCK_T * SIGN
    out = tl.cast(piece, tl.int64) * D + columns
    tl.store(product + out, tl.where(most <= 1.0, p, float("nan")), mask=inside)
    tl.store(result + out, s, mask=inside)
    if cut is not None:
        tl.store(cut + piece, stopped)  # every block of channels the same


@triton.jit
def walk(
    x,
    a,
    carry,
    columns,
    inside,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    BACKWARD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The carry [block_d] through a chunk without cuts; pointers are at its first step."""
    ACC: tl.constexpr = carry.dtype
    for _ in range(CHUNK):
        value = tl.load(x + columns * X_CHANNEL, mask=inside, other=0.0).to(ACC)
        gate = tl.load(a + columns * A_CHANNEL, mask=inside, other=0.0).to(ACC)
        carry = gate * (carry + value) if BACKWARD else gate * carry + value
        x += X_STEP
        a += A_STEP
    return carry


SPILLED = {"sm_100": "16 bytes a thread, none of them in the loop"}
"""Of the scan over chunks, by architecture: why that is accepted."""


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_carry(
    product,
    result,
    cut,
    state,
    x,
    a,
    T,
    chunks,
    state_row,
    x_batch,
    a_batch,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    STATE_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """product, result: [B,chunks,D]; state: [B,D] or None. result[c] becomes the state that leaves chunk c.

    x, a: [B,T,D] of phase 1, for chunks whose product is of no use; None where no gate can be beyond [-1, 1]. There a
    product of zero, which is what a cut makes of it, lets nothing through.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    SIGN: tl.constexpr = -1 if REVERSE else 1
    batch = tl.cast(tl.program_id(0) // BLOCKS, tl.int64)
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    carry = load_state(state, batch, state_row, columns, inside, STATE_CHANNEL, ACC, BLOCK_D)
    product += batch * chunks * D
    result += batch * chunks * D
    if cut is not None:
        cut += batch * chunks
    for begin in range(0, chunks, ROWS):
        ps = load_rows(product + columns, inside, chunks - begin, D, 1.0, ROWS, True, True)
        ss = load_rows(result + columns, inside, chunks - begin, D, 0.0, ROWS, True, True)
        stops = load_flags(cut, chunks - begin, 1, 0, ROWS, True)
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
                tl.store(result + u * D + columns, carry, mask=inside & (u < chunks - begin))
        else:
            for c in range(tl.minimum(ROWS, chunks - begin)):
                p = tl.load(product + c * D + columns, mask=inside, other=1.0)
                s = tl.load(result + c * D + columns, mask=inside, other=0.0)
                after = p * carry + s
                stop = False
                if cut is not None:
                    stop = tl.load(cut + c) != 0
                    after = tl.where(stop, s, after)
                useless = (p != p) | (s - s != 0.0)
                if x is not None:
                    if (tl.max(useless.to(tl.int32), axis=0) != 0) & (stop == 0):
                        step = tl.cast(begin + c, tl.int64) * CHUNK
                        first = T - 1 - step if REVERSE else step
                        walked = walk(
                            x + (batch * x_batch + first * (SIGN * far(X_STEP))),
                            a + (batch * a_batch + first * (SIGN * far(A_STEP))),
                            carry,
                            columns,
                            inside,
                            far(X_STEP),
                            X_CHANNEL,
                            far(A_STEP),
                            A_CHANNEL,
                            BACKWARD,
                            CHUNK,
                        )
                        after = tl.where(useless, walked, after)
                carry = after
                tl.store(result + c * D + columns, carry, mask=inside)
        product += ROWS * D
        result += ROWS * D
        if cut is not None:
            cut += ROWS


@triton.jit
def entering(result, state, batch, chunk, chunks, state_row, columns, inside, D: tl.constexpr,
             STATE_CHANNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """The state [block_d] that enters a chunk: the given one for the first, else what left the chunk before."""
    carry = load_state(state, batch, state_row, columns, inside & (chunk == 0), STATE_CHANNEL, ACC, BLOCK_D)
    if result is not None:
        row = batch * chunks + chunk - 1
        carry += tl.load(result + row * D + columns, mask=inside & (chunk > 0), other=0.0)
    return carry


def mark(
    cu_seqlens: Tensor | None,
    state: Tensor | None,
    final: Tensor | None,
    time: int,
    width: int,
    reverse: bool,
    acc: Any,
) -> tuple[Tensor | None, Tensor | None, list[Launch]]:
    """(enter, leave, launches that fill them); nothing where there are no packed sequences."""
    if cu_seqlens is None:
        return None, None, []
    enter, leave = torch.full((2, time), -1, dtype=torch.int32, device=cu_seqlens.device)
    launch = Launch(
        kernel=linear_scan_mark,
        grid=(cu_seqlens.shape[0] - 1,),
        args={
            "cu_seqlens": cu_seqlens,
            "state": state,
            "enter": enter,
            "leave": leave,
            "final": final,
            "T": time,
            "state_row": host.row_stride(state, 0),
        },
        constexprs={
            "D": width,
            "STATE_CHANNEL": host.channel_stride(state),
            "REVERSE": reverse,
            "ACC": acc,
            "BLOCK_D": 128,
        },
    )
    return enter, leave, [launch]


def reduce(
    x: Tensor,
    a: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    enter: Tensor | None,
    *,
    reverse: bool,
    backward: bool,
    chunk: int,
    block_t: int,
    block_d: int,
    num_warps: int,
) -> tuple[Tensor | None, list[Launch]]:
    """(states that leave the chunks [B,C-1,D] in the accumulator's dtype, launches); nothing for a single chunk.

    state: what enters time [B,D], or each packed sequence [N,D]. reverse: time is visited from its end.
    """
    batch, time, width = x.shape
    chunks = triton.cdiv(time, chunk) - 1
    if chunks == 0:
        return None, []
    product, result = torch.empty((2, batch, chunks, width), dtype=accumulator(x.dtype), device=x.device)
    cut = None
    if reset is not None or enter is not None:
        cut = torch.empty((batch, chunks), dtype=torch.int32, device=x.device)
    acc = host.wide(x.dtype)
    whole = Launch(
        kernel=linear_scan_reduce,
        grid=(batch * chunks * triton.cdiv(width, block_d),),
        args={
            "x": x,
            "a": a,
            "reset": host.flags_of(reset),
            "enter": enter,
            "state": state if enter is not None else None,
            "product": product,
            "result": result,
            "cut": cut,
            "T": time,
            "chunks": chunks,
            "x_batch": host.row_stride(x, 0),
            "a_batch": host.row_stride(a, 0),
            "reset_batch": host.row_stride(reset, 0),
            "state_row": host.row_stride(state, 0),
        },
        constexprs={
            "D": width,
            **host.time_strides("X", x, reverse),
            **host.time_strides("A", a, reverse),
            "RESET_STEP": host.signed_step(reset, reverse),
            "STATE_CHANNEL": host.channel_stride(state),
            "REVERSE": reverse,
            "BACKWARD": backward,
            "ACC": acc,
            "CHUNK": chunk,
            "BLOCK_T": block_t,
            "BLOCK_D": block_d,
        },
        num_warps=num_warps,
        tile=block_t * block_d,
        claims=Claims(load_bits=host.load_bits((x, a), block_d // (32 * num_warps))),
    )
    given = state if enter is None else None
    return result, [whole, carry(product, result, given, cut, Source(x, a, chunk, reverse, backward))]


class Source(NamedTuple):
    """What phase 1 read: x, a [B,T,D], and how."""

    x: Tensor
    a: Tensor
    chunk: int
    reverse: bool
    backward: bool


def carry(
    product: Tensor, result: Tensor, state: Tensor | None, cut: Tensor | None = None, source: Source | None = None
) -> Launch:
    """Phase 2: result [B,C-1,D] becomes the states that leave the chunks. product, result: phase 1's; state: [B,D].

    Packed sequences have no ``state`` here: they bring their own, at the steps where they start. cut: int32 [B,C-1],
    which chunks let nothing through. source: for gates of any size; None where all are within [-1, 1].
    """
    batch, chunks, width = product.shape
    x, a, chunk, reverse, backward = source or (None, None, 0, False, False)
    return Launch(
        kernel=linear_scan_carry,
        grid=(batch * triton.cdiv(width, CARRY_D),),
        args={
            "product": product,
            "result": result,
            "cut": cut,
            "state": state,
            "x": x,
            "a": a,
            "T": 0 if x is None else x.shape[1],
            "chunks": chunks,
            "state_row": host.row_stride(state, 0),
            "x_batch": host.row_stride(x, 0),
            "a_batch": host.row_stride(a, 0),
        },
        constexprs={
            "D": width,
            "X_STEP": host.signed_step(x, reverse),
            "X_CHANNEL": host.channel_stride(x),
            "A_STEP": host.signed_step(a, reverse),
            "A_CHANNEL": host.channel_stride(a),
            "STATE_CHANNEL": host.channel_stride(state),
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
    )


def traffic(case: Case, chunk: int, streams: int) -> int:
    """Bytes moved when nothing of what phase 1 read is still in cache: ``streams`` in phase 3, two more in phase 1."""
    rows = case["B"] * case["D"]
    before = triton.cdiv(case["T"], chunk) - 1
    size = case.bytes_per_element()
    # phase 1 writes P and S, phase 2 reads both and writes one, phase 3 reads that one
    scratch = 6 * rows * before * accumulator(case.torch_dtype).itemsize
    total: int = rows * size * (streams * case["T"] + 2 * before * chunk) + scratch
    return total
