"""Scan row by row in registers: what all Triton forms share, for whole sequences, for pieces, for channels done again.

A step of a is a gate for every channel, of a carry [block_d], or the matrices of the ``held`` blocks of a program, of a
carry [held, n], n padded to a power of two, or ``held`` complex gates, of a carry [held, 2], whose a has no more
elements than the carry. Those are loaded flat, vectors [held * n] and matrices [held * n * n],
because that is how memory has them: a thread's load is 16 bytes wide whatever n is. Only then is it seen as [held, n],
or [held, n, n]. Small blocks then lie within one thread, and sums over them need no other.

Packed sequences come in two ways. Where a program owns one sequence, its span says all. Where programs own pieces of
time, ``Marks`` tell where sequences start and end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.gating import gate_of, held_gates, input_of, load_steps
from griffin_kernels.ops._triton.pools import has, pool_later
from griffin_kernels.ops._triton.scan import AGAIN, beyond_one, complex_product
from griffin_kernels.ops._triton.strides import far, reach
from griffin_kernels.ops._triton.tensors import (
    Channels,
    at,
    dense,
    later,
    load_flags,
    load_rows,
    load_state,
    marks_later,
    own_channels,
    store_row,
    store_state,
)


class Streams(NamedTuple):
    """What a scan reads and writes: Rows, but that h is contiguous, as a kernel's argument a pointer."""

    x: Any
    a: Any
    reset: Any
    h: Any


class Carried(NamedTuple):
    """What a scan hands from step to step: the state, and the product of the gates so far, or None."""

    state: Any
    product: Any


class ScanEnds(NamedTuple):
    """``State`` [N,D] or None: what sequences start from, what they end with, the product of their gates."""

    h0: Any
    h_last: Any
    a_prod: Any


class PieceProducts(NamedTuple):
    """Products of gates that programs give which own pieces of time, as ``marked_product`` has them.

    final: ``State`` [N,D], of each sequence the part that lies in the piece where it ends. open: [pieces,D], of what
    no sequence ends in that piece.
    """

    final: Any
    open: Any


class Matrices(NamedTuple):
    """[B,T,H,n,n]: as Rows, and the strides of blocks, rows and columns in elements."""

    at: Any
    batch: Any
    step: Any
    channel: Any
    block: Any
    row: Any
    column: Any


class Tile(NamedTuple):
    """Constants: H, n, n as a power of two, how many blocks a program holds, and elements of a for each channel.

    Of gates D, 1, None, block_d, 1; of complex gates D, 2, 2, block_d, 1.
    """

    blocks: Any
    size: Any
    padded: Any
    held: Any
    each: Any


class Blocks(NamedTuple):
    """What a program owns: channels of vectors; elements of matrices, where a has them, and where an output has."""

    vectors: Any
    matrices: Any
    outputs: Any


@bundling
def streams_at(given, batch, first, T, D: tl.constexpr, SIGN: tl.constexpr):
    """The rows of a batch entry from time ``first`` on."""
    x, a, reset = at(given.x, batch, first, SIGN), at(given.a, batch, first, SIGN), at(given.reset, batch, first, SIGN)
    return Streams(x, a, reset, dense(given.h, batch * T + first, D, SIGN))


@bundling
def streams_later(streams, steps):
    """The streams from ``steps`` steps later on."""
    x, a, reset, h = streams
    return Streams(later(x, steps), later(a, steps), later(reset, steps), later(h, steps))


@bundling
def alike(channels):
    """A scan of gates: what a program owns of x, it owns of a."""
    return Blocks(channels, channels, channels)


@bundling
def own_part(place, tile, a):
    """(row, Blocks) of program ``place`` of rows * ceil(blocks / held), blocks fastest."""
    return (
        own_gates(place, tile)
        if tile.padded is None
        else (own_numbers(place, tile) if tile.each == 1 else own_blocks(place, tile, a))
    )


@bundling
def own_gates(place, tile):
    row, channels = own_channels(place, tile.blocks, tile.held)
    return row, alike(channels)


@bundling
def own_numbers(place, tile):
    GROUPS: tl.constexpr = (tile.blocks + tile.held - 1) // tile.held
    return place // GROUPS, alike(vector_channels((place % GROUPS) * tile.held, tile))


@bundling
def own_blocks(place, tile, a):
    GROUPS: tl.constexpr = (tile.blocks + tile.held - 1) // tile.held
    first = (place % GROUPS) * tile.held
    matrices = matrix_channels(first, tile, far(a.block), a.row, a.column)
    outputs = matrix_channels(first, tile, tile.size * tile.size, tile.size, 1)
    return place // GROUPS, Blocks(vector_channels(first, tile), matrices, outputs)


@bundling
def vector_channels(first, tile):
    """Channels [held * n] of the blocks from ``first`` on."""
    N: tl.constexpr = tile.padded
    lanes = tl.arange(0, tile.held * N)
    if tile.size == N:
        columns = first * N + lanes
        inside = columns < tile.blocks * N
    else:
        columns = (first + lanes // N) * tile.size + lanes % N
        inside = (first + lanes // N < tile.blocks) & (lanes % N < tile.size)
    return Channels(columns, inside, None if tile.blocks % tile.held == 0 and N == tile.size else inside)


@bundling
def matrix_channels(first, tile, BLOCK, ROW: tl.constexpr, COLUMN: tl.constexpr):
    """Elements [held * n * n] of the blocks from ``first`` on. BLOCK, ROW, COLUMN: strides of block, j and k."""
    N: tl.constexpr = tile.padded
    flat = tl.arange(0, tile.held * N * N)
    if tile.size == N:
        inside = first * (N * N) + flat < tile.blocks * N * N
    else:
        inside = (first + flat // (N * N) < tile.blocks) & (flat // N % N < tile.size) & (flat % N < tile.size)
    if tile.size == N and COLUMN == 1 and ROW == N and reach(BLOCK) == N * N:
        offsets = first * (N * N) + flat
    else:
        offsets = (first + flat // (N * N)) * BLOCK + flat // N % N * ROW + flat % N * COLUMN
    return Channels(offsets, inside, None if tile.blocks % tile.held == 0 and N == tile.size else inside)


@triton.jit
def as_carry(flat, tile):
    """[held * n] as [held, n]; of gates as it is."""
    return flat if tile.padded is None else tl.reshape(flat, (tile.held, tile.padded))


@triton.jit
def as_matrices(flat, vectors):
    """[held * n * n] as [held, n, n] in the dtype of vectors [held, n]."""
    return tl.reshape(flat, (vectors.shape[0], vectors.shape[1], vectors.shape[1])).to(vectors.dtype)


@triton.jit
def through_step(a, state):
    """A step's gates times a state [block_d], matrices times a state [held, n], or complex gates times [held, 2]."""
    if len(state.shape) == 1:
        after = a.to(state.dtype) * state
    elif a.shape[0] == state.shape[0] * state.shape[1]:
        after = complex_product(a, state, False)
    else:
        after = tl.sum(as_matrices(a, state) * state[:, None, :], axis=2)
    return after


@triton.jit
def back_through_step(a, g):
    """As ``through_step`` for a gradient, of matrices transposed, of the conjugates of complex gates."""
    if len(g.shape) == 1:
        before = a.to(g.dtype) * g
    elif a.shape[0] == g.shape[0] * g.shape[1]:
        before = complex_product(a, g, True)
    else:
        before = tl.sum(as_matrices(a, g) * g[:, :, None], axis=1)
    return before


CUT = tl.constexpr(float("-inf"))
"""What stands for a product that a reset cut: one of gates within [-1, 1] is never infinite."""


@triton.jit
def marked_product(product, gate, stop, RESETS: tl.constexpr):
    """A product with one more gate: CUT from a reset on, and NaN where a gate is not within [-1, 1].

    Products of other gates may overflow where the whole does not: those are for another way.
    """
    after = product * gate
    if RESETS:
        after = tl.where(stop | (product == CUT), CUT, after)
    return tl.where(tl.abs(gate) <= 1.0, after, float("nan"))


@bundling
def start_of(state, tile, PRODUCT: tl.constexpr):
    """A scan's carry before its first step, from what it starts from [held * n]."""
    return Carried(as_carry(state, tile), tl.full(state.shape, 1.0, dtype=state.dtype) if PRODUCT else None)


@bundling
def scan_tile(
    streams, marks, carry, own, left, gating, held, products, BLOCK_T: tl.constexpr, TAIL: tl.constexpr, kept=None
):
    """BLOCK_T steps, fewer in the tail; streams are at the tile's first step. Gives the carry.

    held: see ``held_gates``. products: of pieces of time; None where a carried product is that of a whole sequence.
    kept: a pool at the tile's first step, where states are kept, or None.
    """
    state, product = carry.state, carry.product
    ACC: tl.constexpr = state.dtype
    GATES: tl.constexpr = len(state.shape) == 1
    NEUTRAL: tl.constexpr = 1.0 if GATES and (gating is None or not gating.log) else 0.0
    xs = load_rows(streams.x, own.vectors, left, 0.0, BLOCK_T, TAIL)
    steps = load_steps(streams.a, held, own.matrices, left, NEUTRAL, BLOCK_T, TAIL)
    resets = load_flags(streams.reset, left, 0, BLOCK_T, TAIL)
    if marks is not None:
        enters = load_flags(marks.enter, left, -1, BLOCK_T, TAIL)
        leaves = load_flags(marks.leave, left, -1, BLOCK_T, TAIL)
    if kept is not None:
        targets = load_flags(kept.places, left, -1, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        if marks is not None:
            start = load_state(marks.state, enters[u], own.vectors, ACC, enters[u] >= 0)
            state = tl.where(enters[u] >= 0, tl.reshape(start, state.shape), state)
        if streams.reset is not None:
            state = tl.where(resets[u] != 0, 0.0, state)
        gate = gate_of(steps[u], gating, ACC)
        value = input_of(tl.reshape(xs[u].to(ACC), state.shape), steps[u], gate, gating)
        after = through_step(gate, state) + value
        flat = tl.reshape(after, xs[u].shape)
        store_row(streams.h, u, flat, own.vectors, left, TAIL)
        if marks is not None:
            store_state(marks.final, leaves[u], flat, own.vectors, leaves[u] >= 0)
        if kept is not None:
            store_state(kept.states, targets[u], flat, own.vectors, has(kept, targets[u]))
        if product is not None:
            gate = gate.to(ACC)
            if marks is not None:
                product = tl.where(enters[u] >= 0, 1.0, product)
            if products is not None:
                product = marked_product(product, gate, resets[u] != 0, streams.reset is not None)
            else:
                if streams.reset is not None:
                    product = tl.where(resets[u] != 0, 0.0, product)
                product = gate * product
            if marks is not None:
                store_state(products.final, leaves[u], product, own.vectors, leaves[u] >= 0)
        # steps after the end must not change what the last one left; gates are 1 there
        state = after if GATES or not TAIL else tl.where(u < left, after, state)
    return Carried(state, product)


@bundling
def scan_rows(streams, marks, carry, own, steps, gating, products, BLOCK_T: tl.constexpr, kept=None):
    """``steps`` steps from a carry; streams and kept are at step 0 of the span. Gives the last carry.

    See ``scan_tile``.
    """
    held = held_gates(streams.a, own.matrices, gating, carry.state.dtype)
    full = steps // BLOCK_T
    for _ in range(full):
        carry = scan_tile(streams, marks, carry, own, BLOCK_T, gating, held, products, BLOCK_T, False, kept)
        streams = streams_later(streams, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
        if kept is not None:
            kept = pool_later(kept, BLOCK_T)
    left = steps - full * BLOCK_T
    if left > 0:
        carry = scan_tile(streams, marks, carry, own, left, gating, held, products, BLOCK_T, True, kept)
    return carry


@triton.jit
def scan_again(streams, ends, row, most, channels, steps, done, gating):
    """Channels with products of no use again, row by row, if ``most`` [block_d], their largest |a|, says there are any.

    Streams are ``done`` steps past step 0. Other threads have written the rows of h.
    """
    if tl.min((most <= 1.0).to(tl.int32), axis=0) == 0:  # NaN too, where a maximum keeps it
        tl.debug_barrier()
        back = streams_later(streams, -done)
        wild = beyond_one(back.a, channels, steps, most.dtype, gating)
        again = Channels(channels.columns, wild, wild)
        start = load_state(ends.h0, row, again, most.dtype)
        ones = None if ends.a_prod is None else tl.full(start.shape, 1.0, dtype=start.dtype)
        carry = scan_rows(back, None, Carried(start, ones), alike(again), steps, gating, None, AGAIN)
        store_state(ends.h_last, row, carry.state, again)
        store_state(ends.a_prod, row, carry.product, again)
