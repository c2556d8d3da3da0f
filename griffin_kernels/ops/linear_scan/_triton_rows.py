"""Scan row by row in registers: what all Triton forms share, be it for whole sequences, pieces, or what is done again.

Packed sequences come in two ways. Where a program owns one sequence, its span says all. Where programs own pieces of
time, ``Marks`` tell where sequences start and end.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.tensors import (
    later,
    load_flags,
    load_rows,
    load_state,
    marks_later,
    store_row,
    store_state,
)


@triton.jit
def scan_tile(x, a, reset, marks, h, carry, channels, left, BLOCK_T: tl.constexpr, TAIL: tl.constexpr):
    """BLOCK_T steps, fewer in the tail; rows are at the tile's first step. Gives the carry."""
    ACC: tl.constexpr = carry.dtype
    xs = load_rows(x, channels, left, 0.0, BLOCK_T, TAIL)
    gates = load_rows(a, channels, left, 1.0, BLOCK_T, TAIL)
    resets = load_flags(reset, left, 0, BLOCK_T, TAIL)
    if marks is not None:
        enters = load_flags(marks.enter, left, -1, BLOCK_T, TAIL)
        leaves = load_flags(marks.leave, left, -1, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        if marks is not None:
            start = load_state(marks.state, enters[u], channels, ACC, enters[u] >= 0)
            carry = tl.where(enters[u] >= 0, start, carry)
        if reset is not None:
            carry = tl.where(resets[u] != 0, 0.0, carry)
        carry = gates[u].to(ACC) * carry + xs[u].to(ACC)
        store_row(h, u, carry, channels, left, TAIL)
        if marks is not None:
            store_state(marks.final, leaves[u], carry, channels, leaves[u] >= 0)
    return carry


@triton.jit
def scan_rows(x, a, reset, marks, h, carry, channels, steps, BLOCK_T: tl.constexpr):
    """``steps`` steps from ``carry`` [block_d]; rows are at step 0 of the span. Gives the last carry."""
    full = steps // BLOCK_T
    for _ in range(full):
        carry = scan_tile(x, a, reset, marks, h, carry, channels, BLOCK_T, BLOCK_T, False)
        x, a, h = later(x, BLOCK_T), later(a, BLOCK_T), later(h, BLOCK_T)
        if reset is not None:
            reset = later(reset, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    left = steps - full * BLOCK_T
    if left > 0:
        carry = scan_tile(x, a, reset, marks, h, carry, channels, left, BLOCK_T, True)
    return carry
