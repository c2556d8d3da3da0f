"""Device functions that the Triton kernels of block_diagonal_scan and its gradient share.

A program owns BLOCK_H blocks. What a step holds of them are two flat arrays: vectors [BLOCK_H * N] and matrices
[BLOCK_H * N * N], N the power of two from n on. They are loaded flat, because that is how memory has them: a thread's
load is 16 bytes wide whatever n is, and only then is it seen as [BLOCK_H, N] or [BLOCK_H, N, N]. Small blocks then lie
within one thread, and sums over them need no other.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.strides import reach


@triton.jit
def vector_columns(first, H: tl.constexpr, SIZE: tl.constexpr, N: tl.constexpr, BLOCK_H: tl.constexpr):
    """(channels, inside), both [BLOCK_H * N], of the blocks from ``first`` on."""
    lanes = tl.arange(0, BLOCK_H * N)
    if SIZE == N:
        columns = first * N + lanes
        inside = columns < H * N
    else:
        columns = (first + lanes // N) * SIZE + lanes % N
        inside = (first + lanes // N < H) & (lanes % N < SIZE)
    return columns, inside


@triton.jit
def matrix_elements(
    first,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    BLOCK,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """(offsets within a step, inside), both [BLOCK_H * N * N]. BLOCK, ROW, COLUMN: strides of block, j and k."""
    flat = tl.arange(0, BLOCK_H * N * N)
    if SIZE == N:
        inside = first * (N * N) + flat < H * N * N
    else:
        inside = (first + flat // (N * N) < H) & (flat // N % N < SIZE) & (flat % N < SIZE)
    if SIZE == N and COLUMN == 1 and ROW == N and reach(BLOCK) == N * N:
        offsets = first * (N * N) + flat
    else:
        offsets = (first + flat // (N * N)) * BLOCK + flat // N % N * ROW + flat % N * COLUMN
    return offsets, inside


@triton.jit
def as_vectors(flat, N: tl.constexpr, BLOCK_H: tl.constexpr):
    """[BLOCK_H * N] as [BLOCK_H, N]."""
    return tl.reshape(flat, (BLOCK_H, N))


@triton.jit
def as_matrices(flat, ACC: tl.constexpr, N: tl.constexpr, BLOCK_H: tl.constexpr):
    """[BLOCK_H * N * N] as [BLOCK_H, N, N] in the accumulator's dtype."""
    return tl.reshape(flat, (BLOCK_H, N, N)).to(ACC)
