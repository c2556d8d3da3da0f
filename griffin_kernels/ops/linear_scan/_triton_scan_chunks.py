"""Time split over programs, of gates of every kind: phase 1, and the launches before phase 3.

Phase 1 (reduce) computes (P, S) of every chunk but the last, for gates and matrices as in _triton_scan.py; see
_triton/chunks.py for what these are. Phase 2 of gates, complex ones too, is ``linear_scan_carry`` there. That of
matrices is the kernel of triton.sequential over chunks instead of steps, whose resets are the cuts; a chunk whose P
overflows is lost with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.launch import Launch, architecture
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.chunks import CARRY_D, ChunkedInputs, Maps, carry, marked, own_chunk
from griffin_kernels.ops._triton.gating import gate_of, held_gates, input_of, load_steps
from griffin_kernels.ops._triton.scan import complex_product, span
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
    own_channels,
    rows,
    store_state,
)
from griffin_kernels.ops.linear_scan import triton_sequential
from griffin_kernels.ops.linear_scan._scan_launches import (
    Arguments,
    in_channels,
    padded,
    read_by,
    scan_launch,
    steps_of,
)
from griffin_kernels.ops.linear_scan._triton_scan import (
    CUT,
    PieceProducts,
    as_carry,
    as_matrices,
    back_through_step,
    own_part,
    through_step,
)
from griffin_kernels.ops.linear_scan.op import MODULUS, Call

MOST_SQUARE = tl.constexpr(MODULUS**2)
"""Of |a| of complex gates: what is above makes products that are of no use."""

BLOCK_A = 256
"""Elements of matrices that a program of phase 1 or 2 takes of one step; phase 1 multiplies them by n each."""


@triton.jit
def identity(state, tile):
    """The product of no gates or matrices, for a state [block_d] or [held, n]."""
    if len(state.shape) == 1:
        product = tl.full(state.shape, 1.0, dtype=state.dtype)
    elif tile.each == 1:
        index = tl.arange(0, state.shape[0] * 2)
        product = tl.reshape(tl.where(index % 2 == 0, 1.0, 0.0).to(state.dtype), state.shape)
    else:
        N: tl.constexpr = state.shape[1]
        index = tl.arange(0, state.shape[0] * N * N)
        product = as_matrices(tl.where(index // N % N == index % N, 1.0, 0.0), state)
    return product


@triton.jit
def extended(product, a, state, BACKWARD: tl.constexpr):
    """A product with one more step of a; BACKWARD: of matrices transposed, or of conjugates."""
    if len(state.shape) == 1:
        product = a.to(state.dtype) * product
    elif len(product.shape) == 2:
        product = complex_product(a, product, BACKWARD)
    elif BACKWARD:
        product = tl.sum(as_matrices(a, state)[:, :, :, None] * product[:, :, None, :], axis=1)
    else:
        product = tl.sum(as_matrices(a, state)[:, :, :, None] * product[:, None, :, :], axis=2)
    return product


@triton.jit
def size_of(a, state):
    """|a| of gates [block_d], |a|^2 of complex ones, twice for each, in the state's dtype."""
    if len(state.shape) == 1:
        size = tl.abs(a.to(state.dtype))
    else:
        real, imaginary = tl.split(tl.reshape(a, state.shape).to(state.dtype))
        square = real * real + imaginary * imaginary
        size = tl.reshape(tl.join(square, square), a.shape)
    return size


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_reduce(
    x,
    a,
    reset,
    marks,
    maps,
    T,
    chunks,
    tile,
    gating,
    REVERSE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """(P, S) of one whole chunk: x [B,T,D], a [Ba,Ta,D] or [B,T,H,n,n] -> maps, whose product has what a step has of a.

    REVERSE: time is visited backwards. Grid: B * chunks * ceil(blocks / held), blocks fastest.
    """
    SIGN: tl.constexpr = -1 if REVERSE else 1
    GATES: tl.constexpr = tile.padded is None
    NEUTRAL: tl.constexpr = 1.0 if GATES and (gating is None or not gating.log) else 0.0
    D: tl.constexpr = tile.blocks * tile.size
    piece, own = own_part(tl.program_id(0), tile, a)
    batch, _, begin, _ = own_chunk(piece, chunks, T, CHUNK)
    first = T - 1 - begin if REVERSE else begin
    x, a, reset = at(x, batch, first, SIGN), at(a, batch, first, SIGN), at(reset, batch, first, SIGN)
    marks = marks_at(marks, first, SIGN)
    held = held_gates(a, own.matrices, gating, ACC)
    s = as_carry(tl.zeros(own.vectors.columns.shape, dtype=ACC), tile)
    p = identity(s, tile)
    most = tl.zeros(own.vectors.columns.shape, dtype=ACC)  # of |a| of gates, |a|^2 of complex ones
    stopped = 0
    for _ in range(CHUNK // BLOCK_T):
        xs = load_rows(x, own.vectors, BLOCK_T, 0.0, BLOCK_T, False)
        steps = load_steps(a, held, own.matrices, BLOCK_T, NEUTRAL, BLOCK_T, False)
        resets = load_flags(reset, BLOCK_T, 0, BLOCK_T, False)
        if marks is not None:
            enters = load_flags(marks.enter, BLOCK_T, -1, BLOCK_T, False)
        for u in tl.static_range(BLOCK_T):
            if marks is not None:
                starts = enters[u] >= 0
                start = load_state(marks.state, enters[u], own.vectors, ACC, starts)
                p = tl.where(starts, 0.0, p)
                s = tl.where(starts, tl.reshape(start, s.shape), s)
                stopped |= starts.to(tl.int32)
            if reset is not None:
                stop = resets[u] != 0
                stopped |= stop.to(tl.int32)
                if not BACKWARD:
                    p = tl.where(stop, 0.0, p)
                    s = tl.where(stop, 0.0, s)
            gate = gate_of(steps[u], gating, ACC)
            if tile.each == 1:
                most = tl.maximum(most, size_of(gate, s))
            value = tl.reshape(xs[u].to(ACC), s.shape)
            if BACKWARD:
                s = back_through_step(gate, s + value)
            else:
                s = through_step(gate, s) + input_of(value, steps[u], gate, gating)
            p = extended(p, gate, s, BACKWARD)
            if reset is not None and BACKWARD:
                p = tl.where(stop, 0.0, p)
                s = tl.where(stop, 0.0, s)
        x, a = later(x, BLOCK_T), later(a, BLOCK_T)
        if reset is not None:
            reset = later(reset, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    if tile.each == 1:
        p = tl.where(tl.reshape(most, p.shape) <= (1.0 if GATES else MOST_SQUARE), p, float("nan"))
    product = tl.reshape(p, own.outputs.columns.shape)
    store_state(State(maps.product, D * tile.each, 1), piece, product, own.outputs)
    store_state(State(maps.result, D, 1), piece, tl.reshape(s, own.vectors.columns.shape), own.vectors)
    if maps.cut is not None:
        tl.store(maps.cut + piece, stopped)  # every program of the chunk the same


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_products(
    products,
    a,
    reset,
    cu_seqlens,
    T,
    chunks,
    gating,
    D: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Products of the gates of sequences from those of their pieces, in place in products.final.

    a [Ba,Ta,D], reset [B,T]: for products of no use, which are taken again step by step. Grid: N * ceil(D / block_d).
    """
    SIGN: tl.constexpr = -1 if REVERSE else 1
    final, pieces = products.final, products.open  # Triton 3.6 forgets constants of arguments in branches and loops
    row, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    batch, first, steps = span(row, cu_seqlens, T, REVERSE)
    begin = T - 1 - first if REVERSE else first
    product = tl.full((BLOCK_D,), 1.0, dtype=ACC)
    if steps > 0:
        chunk, last = begin // CHUNK, (begin + steps - 1) // CHUNK
        for piece in range(batch * (chunks + 1) + chunk, batch * (chunks + 1) + last):
            part = load_state(State(pieces, D, 1), piece, channels, ACC)
            product = tl.where(part == CUT, 0.0, product * part)
        part = load_state(final, row, channels, ACC)
        product = tl.where(part == CUT, 0.0, product * part)
    if tl.max((product != product).to(tl.int32), axis=0) != 0:
        walked = tl.full((BLOCK_D,), 1.0, dtype=ACC)
        gates, stops = at(a, batch, first, SIGN), at(reset, batch, first, SIGN)
        for _ in range(steps):
            if reset is not None:
                walked = tl.where(tl.load(stops.at) != 0, 0.0, walked)
                stops = later(stops, 1)
            walked *= gate_of(load_rows(gates, channels, 1, 0.0, 1, True)[0], gating, ACC).to(ACC)
            gates = later(gates, 1)
        product = tl.where(product != product, walked, product)
    store_state(final, row, product, channels)


class _MatrixConfig(NamedTuple):
    """Of phases 1 and 2 of matrices, whatever phase 3 has; block_t: steps whose loads are in flight."""

    block_t: int
    num_warps: int = 1
    block_a: int = BLOCK_A


def reduce(
    source: ChunkedInputs, given: Tensor | None, reset: Tensor | None, marks: Marks | None, config: Any
) -> tuple[Tensor | None, list[Launch]]:
    """(states that leave the chunks [B,C-1,D] in the accumulator's dtype, launches); nothing for a single chunk.

    given: the state that enters time [B,D]; with marks it is theirs that counts. config: of phase 3.
    """
    x, a, chunk, reverse, backward, gating = source
    batch, time, width = x.shape
    chunks = triton.cdiv(time, chunk) - 1
    if chunks == 0:
        return None, []
    gates, wide = a.ndim < 5, accumulator(x.dtype)
    product = torch.empty((batch, chunks, *a.shape[2:]), dtype=wide, device=x.device)
    result = torch.empty((batch, chunks, width), dtype=wide, device=x.device)
    cut = None
    if reset is not None or marks is not None:
        cut = torch.empty((batch, chunks), dtype=torch.int32, device=x.device)
    args = {
        "x": rows(x, reverse),
        "a": steps_of(a, x, reverse),
        "reset": rows(reset, reverse),
        "marks": None if marks is None else marks._replace(leave=None, final=None),
        "maps": Maps(product, result, cut),
        "T": time,
        "chunks": chunks,
        "gating": gating,
    }
    constexprs = {"REVERSE": reverse, "BACKWARD": backward, "ACC": host.wide(x.dtype), "CHUNK": chunk}
    if not gates:
        # four steps spill on sm_75
        config = _MatrixConfig(2 if architecture(x) == "sm_75" else 4, reduce_warps(a.shape[3]))
    whole = scan_launch(linear_scan_reduce, batch * chunks, (x, a), config, args, constexprs)
    given = None if marks is not None else given
    if gates:
        flat = source._replace(a=in_channels(a))
        return result, [whole, carry(in_channels(product), result, given, cut, flat, pairs=a.ndim == 4)]
    outputs = {"h": torch.empty_like(result), "h_last": torch.empty((batch, width), dtype=wide, device=x.device)}
    phase_2 = triton_sequential.launches(Call(result, product, given, cut), outputs, _MatrixConfig(block_t=8))
    return outputs["h"], [whole, *phase_2]


def open_products(source: ChunkedInputs, arguments: Arguments) -> Arguments:
    """Arguments of a kernel whose programs own pieces of time; memory for their products if a_prod is asked for."""
    x, _, chunk, *_ = source
    count, args, constexprs = arguments
    final, products = args.pop("a_prod"), None
    if final is not None:
        shape = x.shape[0], triton.cdiv(x.shape[1], chunk), x.shape[2]
        products = PieceProducts(final, torch.empty(shape, dtype=final.at.dtype, device=x.device))
    return count, args | {"products": products}, constexprs


def joined_products(source: ChunkedInputs, call: Any, products: PieceProducts) -> Launch:
    """The launch after phase 3 that makes products of sequences from those of pieces."""
    x, a, chunk, reverse, _, gating = source
    return Launch(
        kernel=linear_scan_products,
        grid=(products.final.at.shape[0] * triton.cdiv(x.shape[2], CARRY_D),),
        args={
            "products": products,
            "a": steps_of(a, x, reverse),
            "reset": rows(call.reset, reverse),
            "cu_seqlens": call.cu_seqlens,
            "T": x.shape[1],
            "chunks": products.open.shape[1] - 1,
            "gating": gating,
        },
        constexprs={
            "D": x.shape[2],
            "REVERSE": reverse,
            "ACC": host.wide(x.dtype),
            "CHUNK": chunk,
            "BLOCK_D": CARRY_D,
        },
        num_warps=1,
        rarely=("a", "reset"),
    )


def reduce_warps(size: int) -> int:
    """Warps of phase 1 of matrices: one for every 1024 products in a step."""
    return max(1, BLOCK_A * padded(size) // 1024)


def phases(
    kernel: Any, source: ChunkedInputs, call: Any, outputs: dict[str, Any], arguments: Arguments, config: Any
) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan.

    kernel: of phase 3. arguments: of a kernel that does the whole scan; with marks, those name the states that enter
    and leave time.
    """
    x, _, chunk, reverse, backward, _ = source
    batch, time, _ = x.shape
    chunks = triton.cdiv(time, chunk) - 1
    _, args, constexprs = arguments
    ends = entering, leaving = ("dh_last", "dh0") if backward else ("h0", "h_last")
    given = getattr(call, entering)
    marks, steps = marked(x, args.pop("cu_seqlens"), given, outputs[leaving], reverse)
    result, before = reduce(source, given, call.reset, marks, config)
    if marks is not None:
        args |= dict.fromkeys(ends)
    args |= {"marks": marks, "result": result, "chunks": chunks}
    scan = scan_launch(kernel, batch * (chunks + 1), read_by(call), config, args, constexprs | {"CHUNK": chunk})
    return [*steps, *before, scan]


def traffic(case: Case, chunk: int, matrices: int, vectors: int) -> int:
    """Bytes moved when nothing of what phase 1 read is still in cache.

    matrices, vectors: streams of n elements (1 of gates), and of one, per element of h in phase 3; phase 1 reads one of
    each.
    """
    rows, size, n = case["B"] * case["D"], case.bytes_per_element(), case.dims.get("n", 1)
    before: int = triton.cdiv(case["T"], chunk) - 1
    streams = (matrices * n + vectors) * case["T"] + (n + 1) * before * chunk
    # phase 1 writes P and S, phase 2 reads both and writes one vector, phase 3 reads that one
    scratch = (2 * n + 4) * before * accumulator(case.torch_dtype).itemsize
    return rows * (size * streams + scratch)
