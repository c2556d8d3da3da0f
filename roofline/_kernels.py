"""Triton kernels that keep one part of a GPU busy and nothing else: multiply-add units, special functions, L2."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 1024
"""Elements of a program."""

LINKS = 64
"""Links of a chain that are unrolled, so that counting them costs nothing."""


@triton.jit
def fma_chain(out, factor, term, steps, LINKS: tl.constexpr, BLOCK: tl.constexpr):
    """Every element is taken to itself * factor + term, ``steps * LINKS`` times."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = at.to(tl.float32) * 1e-6
    for _ in range(steps):
        for _ in tl.static_range(LINKS):
            value = tl.fma(value, factor, term)
    tl.store(out + at, value)


@triton.jit
def exp_chain(out, steps, LINKS: tl.constexpr, BLOCK: tl.constexpr):
    """Every element is taken to 2**-itself, ``steps * LINKS`` times; it tends to 0.6412."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = at.to(tl.float32) * 1e-6
    for _ in range(steps):
        for _ in tl.static_range(LINKS):
            value = tl.exp2(-value)
    tl.store(out + at, value)


@triton.jit
def cache_triad(out, left, right, factor, steps, BLOCK: tl.constexpr):
    """out = left + factor * right, over and over: at each step a program takes another block, past its own L1."""
    program = tl.program_id(0)
    for step in range(steps):
        at = ((program + step * 7) % tl.num_programs(0)) * BLOCK + tl.arange(0, BLOCK)
        a = tl.load(left + at, cache_modifier=".cg")
        b = tl.load(right + at, cache_modifier=".cg")
        tl.store(out + at, a + factor * b, cache_modifier=".cg")
