"""Time split over programs: what triton.chunked needs around the scan itself, forward and backward alike.

A chunk is an affine map of the state that enters it, s -> P s + S with P the product of its matrices. Phase 1 (reduce)
computes (P, S) of every chunk but the last. Phase 2 (carry) is triton.sequential's kernel over chunks instead of steps:
it gives the state that leaves each chunk. Phase 3 is the caller's. Backward, the state is
c_t = A_t^T (c_{t+1} + dh_t), visited from the last step.

Packed sequences cut the map where a sequence starts, as in _triton/chunks.py; ``cut`` [B,chunks] tells
which chunks a reset or a start cuts, and is the reset of phase 2. A chunk whose P overflows is lost with it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.launch import Claims, Launch, architecture
from griffin_kernels.ops._triton import host as plain
from griffin_kernels.ops._triton.scan import load_flags, load_rows, load_state
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.block_diagonal_scan import _triton
from griffin_kernels.ops.block_diagonal_scan._triton_jit import (
    as_matrices,
    as_vectors,
    matrix_elements,
    vector_columns,
)
from griffin_kernels.ops.block_diagonal_scan.triton_sequential import block_diagonal_scan_sequential

BLOCK_A = 256
"""Elements of a that a program of phase 1 or 2 takes of one step; phase 1 multiplies them by n each."""
CARRY_ROWS = 8


@triton.jit(do_not_specialize=["T", "chunks"])
def block_diagonal_scan_reduce(
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
    H: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_BLOCK,
    A_ROW: tl.constexpr,
    A_COLUMN: tl.constexpr,
    RESET_STEP,
    STATE_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """(P, S) of one whole chunk: x [B,T,D], a [B,T,H,n,n] -> product [B,chunks,H,n,n], result [B,chunks,D].

    REVERSE: time is visited backwards. Grid: B * chunks * ceil(H / BLOCK_H), blocks fastest.
    """
    D: tl.constexpr = H * SIZE
    GROUPS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    MASKED: tl.constexpr = H % BLOCK_H != 0 or N != SIZE
    SIGN: tl.constexpr = -1 if REVERSE else 1
    FLAT: tl.constexpr = BLOCK_H * N
    block = (tl.program_id(0) % GROUPS) * BLOCK_H
    columns, inside = vector_columns(block, H, SIZE, N, BLOCK_H)
    elements, whole = matrix_elements(block, H, SIZE, N, far(A_BLOCK), A_ROW, A_COLUMN, BLOCK_H)
    piece = tl.program_id(0) // GROUPS
    batch = tl.cast(piece // chunks, tl.int64)
    begin = tl.cast(piece % chunks, tl.int64) * CHUNK
    first = T - 1 - begin if REVERSE else begin
    x += batch * x_batch + first * (SIGN * far(X_STEP))
    a += batch * a_batch + first * (SIGN * far(A_STEP))
    if reset is not None:
        reset += batch * reset_batch + first * (SIGN * far(RESET_STEP))
    if enter is not None:
        enter += first
    index = tl.arange(0, FLAT * N)
    p = as_matrices(tl.where(index // N % N == index % N, 1.0, 0.0), ACC, N, BLOCK_H)
    s = tl.zeros((BLOCK_H, N), dtype=ACC)
    stopped = 0
    for _ in range(CHUNK // BLOCK_T):
        xs = load_rows(x + columns * X_CHANNEL, inside, BLOCK_T, far(X_STEP), 0.0, BLOCK_T, MASKED, False)
        steps = load_rows(a + elements, whole, BLOCK_T, far(A_STEP), 0.0, BLOCK_T, MASKED, False)
        resets = load_flags(reset, BLOCK_T, far(RESET_STEP), 0, BLOCK_T, False)
        enters = load_flags(enter, BLOCK_T, SIGN, -1, BLOCK_T, False)
        for u in tl.static_range(BLOCK_T):
            matrix = as_matrices(steps[u], ACC, N, BLOCK_H)
            vector = as_vectors(xs[u].to(ACC), N, BLOCK_H)
            if enter is not None:
                starts = enters[u] >= 0
                start = load_state(state, enters[u], state_row, columns, inside & starts, STATE_CHANNEL, ACC, FLAT)
                p = tl.where(starts, 0.0, p)
                s = tl.where(starts, as_vectors(start, N, BLOCK_H), s)
                stopped |= starts.to(tl.int32)
            if reset is not None:
                stop = resets[u] != 0
                stopped |= stop.to(tl.int32)
                if not BACKWARD:
                    p = tl.where(stop, 0.0, p)
                    s = tl.where(stop, 0.0, s)
            if BACKWARD:
                s = tl.sum(matrix * (s + vector)[:, :, None], axis=1)
                p = tl.sum(matrix[:, :, :, None] * p[:, :, None, :], axis=1)
                if reset is not None:
                    p = tl.where(stop, 0.0, p)
                    s = tl.where(stop, 0.0, s)
            else:
                s = tl.sum(matrix * s[:, None, :], axis=2) + vector
                p = tl.sum(matrix[:, :, :, None] * p[:, None, :, :], axis=2)
        x += BLOCK_T * far(X_STEP)
        a += BLOCK_T * far(A_STEP)
        if reset is not None:
            reset += BLOCK_T * far(RESET_STEP)
        if enter is not None:
            enter += BLOCK_T * SIGN
    piece = tl.cast(piece, tl.int64)
    out, _ = matrix_elements(block, H, SIZE, N, SIZE * SIZE, SIZE, 1, BLOCK_H)
    tl.store(product + piece * (D * SIZE) + out, tl.reshape(p, (FLAT * N,)), mask=whole)
    tl.store(result + piece * D + columns, tl.reshape(s, (FLAT,)), mask=inside)
    if cut is not None:
        tl.store(cut + piece, stopped)  # every group of blocks the same


def reduce_warps(size: int) -> int:
    """Warps of phase 1: one for every 1024 products of matrices in a step."""
    return max(1, BLOCK_A * _triton.padded(size) // 1024)


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
) -> tuple[Tensor | None, list[Launch]]:
    """(states that leave the chunks [B,C-1,D] in the accumulator's dtype, launches); nothing for a single chunk.

    state: what enters time [B,D], or each packed sequence [N,D]. reverse: time is visited from its end.
    """
    batch, time, width = x.shape
    chunks = triton.cdiv(time, chunk) - 1
    if chunks == 0:
        return None, []
    wide = accumulator(x.dtype)
    product = torch.empty((batch, chunks, *a.shape[2:]), dtype=wide, device=x.device)
    cut = None
    if reset is not None or enter is not None:
        cut = torch.empty((batch, chunks), dtype=torch.bool, device=x.device)
    result, leaving = torch.empty((2, batch, chunks, width), dtype=wide, device=x.device)
    last = torch.empty((batch, width), dtype=wide, device=x.device)
    tile = _triton.tile_constexprs(a, BLOCK_A)
    groups = triton.cdiv(tile["H"], tile["BLOCK_H"])
    warps = reduce_warps(tile["SIZE"])
    # steps whose loads are in flight; four spill on sm_75
    ahead = 2 if architecture(x) == "sm_75" else 4
    whole = Launch(
        kernel=block_diagonal_scan_reduce,
        grid=(batch * chunks * groups,),
        args={
            "x": x,
            "a": a,
            "reset": plain.flags_of(reset),
            "enter": enter,
            "state": state if enter is not None else None,
            "product": product,
            "result": result,
            "cut": plain.flags_of(cut),
            "T": time,
            "chunks": chunks,
            "x_batch": plain.row_stride(x, 0),
            "a_batch": plain.row_stride(a, 0),
            "reset_batch": plain.row_stride(reset, 0),
            "state_row": plain.row_stride(state, 0),
        },
        constexprs={
            **tile,
            **plain.time_strides("X", x, reverse),
            **_triton.matrix_strides("A", a, reverse),
            "RESET_STEP": plain.signed_step(reset, reverse),
            "STATE_CHANNEL": plain.channel_stride(state),
            "REVERSE": reverse,
            "BACKWARD": backward,
            "ACC": plain.wide(x.dtype),
            "CHUNK": chunk,
            "BLOCK_T": ahead,
        },
        num_warps=warps,
        tile=ahead * tile["BLOCK_H"] * tile["SIZE"],
        claims=Claims(load_bits=_triton.load_bits(a, BLOCK_A, warps)),
    )
    # packed sequences bring their own states, at the steps where they start
    inputs = {"x": result, "a": product, "h0": state if enter is None else None, "reset": cut, "cu_seqlens": None}
    _, args, constexprs = _triton.scan_arguments(inputs | {"reverse": False}, {"h": leaving, "h_last": last})
    carry = Launch(
        kernel=block_diagonal_scan_sequential,
        grid=(batch * groups,),
        args=args,
        constexprs=constexprs | tile | {"BLOCK_T": CARRY_ROWS},
        num_warps=1,
        tile=CARRY_ROWS * tile["BLOCK_H"] * tile["SIZE"],
        claims=Claims(load_bits=_triton.load_bits(product, BLOCK_A, 1)),
    )
    return leaving, [whole, carry]


def unfit(case: Case) -> str | None:
    """Why phase 1 cannot run, if so."""
    if _triton.padded(case["n"]) ** 2 > BLOCK_A:
        return f"blocks of n = {case['n']}: products of matrices are kept in registers up to n = 16"
    return None


def traffic(case: Case, chunk: int, matrices: int, vectors: int) -> int:
    """Bytes moved when nothing of what phase 1 read is still in cache.

    matrices, vectors: streams of n elements, and of one, per element of h in phase 3; phase 1 reads one of each.
    """
    rows, size = case["B"] * case["D"], case.bytes_per_element()
    before: int = triton.cdiv(case["T"], chunk) - 1
    streams = (matrices * case["n"] + vectors) * case["T"] + (case["n"] + 1) * before * chunk
    # phase 1 writes P and S, phase 2 reads both and writes one vector, phase 3 reads that one
    scratch = (2 * case["n"] + 4) * before * accumulator(case.torch_dtype).itemsize
    return rows * (size * streams + scratch)
