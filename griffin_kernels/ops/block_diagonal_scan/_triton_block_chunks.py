"""Time split over programs: what triton.chunked needs around the scan itself, forward and backward alike.

A chunk is an affine map of the state that enters it, s -> P s + S with P the product of its matrices. Phase 1 (reduce)
computes (P, S) of every chunk but the last. Phase 2 (carry) is triton.sequential's kernel over chunks instead of steps:
it gives the state that leaves each chunk. Phase 3 is the caller's. Backward, the state is
c_t = A_t^T (c_{t+1} + dh_t), visited from the last step.

Packed sequences cut the map where a sequence starts, as in _triton/chunks.py; ``cut`` [B,chunks] tells
which chunks a reset or a start cuts, and is the reset of phase 2. A chunk whose P overflows is lost with it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.launch import Launch, architecture
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.chunks import ChunkedInputs, Maps
from griffin_kernels.ops._triton.tensors import (
    Marks,
    State,
    at,
    later,
    load_flags,
    load_rows,
    load_state,
    marks_at,
    marks_later,
    rows,
    store_state,
)
from griffin_kernels.ops.block_diagonal_scan import _block_launches, triton_sequential
from griffin_kernels.ops.block_diagonal_scan._triton_blocks import as_vectors, own_blocks
from griffin_kernels.ops.block_diagonal_scan.op import Call
from griffin_kernels.ops.linear_scan._scan_launches import scan_arguments
from griffin_kernels.ops.linear_scan._triton_scan import as_matrices

BLOCK_A = 256
"""Elements of a that a program of phase 1 or 2 takes of one step; phase 1 multiplies them by n each."""
CARRY = triton_sequential.Config(block_t=8, block_a=BLOCK_A, num_warps=1)
"""Of phase 2."""


@triton.jit(do_not_specialize=["T", "chunks"])
def block_diagonal_scan_reduce(
    x,
    a,
    reset,
    marks,
    maps,
    T,
    chunks,
    tile,
    REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """(P, S) of one whole chunk: x [B,T,D], a [B,T,H,n,n] -> maps, whose product is [B,chunks,H,n,n].

    REVERSE: time is visited backwards. Grid: B * chunks * ceil(H / held), blocks fastest.
    """
    SIGN: tl.constexpr = -1 if REVERSE else 1
    D: tl.constexpr = tile.blocks * tile.size
    N: tl.constexpr = tile.padded
    piece, own = own_blocks(tl.program_id(0), tile, a)
    batch = tl.cast(piece // chunks, tl.int64)
    begin = tl.cast(piece % chunks, tl.int64) * CHUNK
    first = T - 1 - begin if REVERSE else begin
    x, a, reset = at(x, batch, first, SIGN), at(a, batch, first, SIGN), at(reset, batch, first, SIGN)
    marks = marks_at(marks, first, SIGN)
    index = tl.arange(0, tile.held * N * N)
    s = tl.zeros((tile.held, N), dtype=ACC)
    p = as_matrices(tl.where(index // N % N == index % N, 1.0, 0.0), s)
    stopped = 0
    for _ in range(CHUNK // BLOCK_T):
        xs = load_rows(x, own.vectors, BLOCK_T, 0.0, BLOCK_T, False)
        steps = load_rows(a, own.matrices, BLOCK_T, 0.0, BLOCK_T, False)
        resets = load_flags(reset, BLOCK_T, 0, BLOCK_T, False)
        if marks is not None:
            enters = load_flags(marks.enter, BLOCK_T, -1, BLOCK_T, False)
        for u in tl.static_range(BLOCK_T):
            matrix = as_matrices(steps[u], s)
            vector = as_vectors(xs[u].to(ACC), tile)
            if marks is not None:
                starts = enters[u] >= 0
                start = load_state(marks.state, enters[u], own.vectors, ACC, starts)
                p = tl.where(starts, 0.0, p)
                s = tl.where(starts, as_vectors(start, tile), s)
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
        x, a = later(x, BLOCK_T), later(a, BLOCK_T)
        if reset is not None:
            reset = later(reset, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    store_state(State(maps.product, D * tile.size, 1), piece, tl.reshape(p, index.shape), own.outputs)
    store_state(State(maps.result, D, 1), piece, tl.reshape(s, own.vectors.columns.shape), own.vectors)
    if maps.cut is not None:
        tl.store(maps.cut + piece, stopped)  # every group of blocks the same


def reduce_warps(size: int) -> int:
    """Warps of phase 1: one for every 1024 products of matrices in a step."""
    return max(1, BLOCK_A * _block_launches.padded(size) // 1024)


def reduce(
    source: ChunkedInputs, given: Tensor | None, reset: Tensor | None, marks: Marks | None
) -> tuple[Tensor | None, list[Launch]]:
    """(states that leave the chunks [B,C-1,D] in the accumulator's dtype, launches); nothing for a single chunk.

    given: the state that enters time [B,D]; with marks it is theirs that counts.
    """
    x, a, chunk, reverse, backward = source
    batch, time, width = x.shape
    chunks = triton.cdiv(time, chunk) - 1
    if chunks == 0:
        return None, []
    wide = accumulator(x.dtype)
    product = torch.empty((batch, chunks, *a.shape[2:]), dtype=wide, device=x.device)
    cut = None
    if reset is not None or marks is not None:
        cut = torch.empty((batch, chunks), dtype=torch.bool, device=x.device)
    result, leaving = torch.empty((2, batch, chunks, width), dtype=wide, device=x.device)
    last = torch.empty((batch, width), dtype=wide, device=x.device)
    args = {
        "x": rows(x, reverse),
        "a": _block_launches.matrices(a, reverse),
        "reset": rows(reset, reverse),
        "marks": None if marks is None else marks._replace(leave=None, final=None),
        "maps": Maps(product, result, None if cut is None else cut.view(torch.uint8)),
        "T": time,
        "chunks": chunks,
    }
    constexprs = {"REVERSE": reverse, "BACKWARD": backward, "ACC": host.wide(x.dtype), "CHUNK": chunk}
    # steps whose loads are in flight; four spill on sm_75
    ahead = 2 if architecture(x) == "sm_75" else 4
    config = triton_sequential.Config(ahead, BLOCK_A, reduce_warps(a.shape[3]))
    whole = _block_launches.launch(block_diagonal_scan_reduce, batch * chunks, a, config, args, constexprs)
    call = Call(result, product, given if marks is None else None, cut)
    _, args, constexprs = scan_arguments(call, {"h": leaving, "h_last": last}, _block_launches.matrices)
    return leaving, [
        whole,
        _block_launches.launch(
            triton_sequential.block_diagonal_scan_sequential, batch, product, CARRY, args, constexprs
        ),
    ]


def unfit(case: Case) -> str | None:
    """Why phase 1 cannot run, if so."""
    if _block_launches.padded(case["n"]) ** 2 > BLOCK_A:
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
