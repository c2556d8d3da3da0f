"""Device functions that the Triton kernels of block_diagonal_scan and its gradient share.

A program owns ``held`` blocks. What a step holds of them are two flat arrays: vectors [held * n] and matrices
[held * n * n], n padded to a power of two. They are loaded flat, because that is how memory has them: a thread's
load is 16 bytes wide whatever n is, and only then is it seen as [held, n] or [held, n, n]. Small blocks then lie
within one thread, and sums over them need no other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.strides import far, reach
from griffin_kernels.ops._triton.tensors import Channels
from griffin_kernels.ops.linear_scan._triton_scan import Blocks


class Matrices(NamedTuple):
    """[B,T,H,n,n]: as Rows, and the strides of blocks, rows and columns in elements."""

    at: Any
    batch: Any
    step: Any
    channel: Any
    block: Any
    row: Any
    column: Any


class BlockSizes(NamedTuple):
    """Constants: H, n, n as a power of two, and how many blocks a program holds."""

    blocks: Any
    size: Any
    padded: Any
    held: Any


@bundling
def own_blocks(place, tile, a):
    """(row, blocks) of program ``place`` of rows * ceil(H / held), blocks fastest."""
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
def as_vectors(flat, tile):
    """[held * n] as [held, n]."""
    return tl.reshape(flat, (tile.held, tile.padded))
