"""The compiled code of the numba.tiled variants of local_attention and its gradient: products in registers.

Every product is made of tiles of ROWS rows by PANEL columns that stay in registers: per step of the inner dimension a
row of PANEL values is loaded, and each of ROWS values multiplies it. What is loaded as rows lies in panels: [n, inner,
PANEL], so that the steps of a tile are read from front to back. A tile is left out where no query of it sees a key of
it, and its inner dimension is cut to what they see, so that almost nothing is computed in vain. See _numba_loops.py.

The forward products of bfloat16 multiply pairs of its values and add both to a float32 (AVX512-BF16): a panel's step
then holds two steps of the inner dimension, side by side, in the same four bytes that one float32 takes. Scores are
not rounded, weights are. The gradient widens bfloat16 and multiplies in float32.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types

from griffin_kernels.ops._native import FLOAT, INT32, INT64, intrinsic
from griffin_kernels.ops.local_attention import _numba_loops
from griffin_kernels.ops.local_attention._numba_fields import AT, after_of, floats
from griffin_kernels.ops.local_attention._numba_loops import Seen
from griffin_kernels.ops.local_attention._numba_rows import is_half

_njit: Any = numba.njit

FILES = (__file__, *_numba_loops.FILES)
"""Sources that the kernels are made from, besides _native.py."""

ROWS = 8
"""Rows of a tile: 16 sums of 16 in registers, enough to hide the latency of an addition."""

PANEL = 32
"""Columns of a tile."""


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_VECTOR = ir.VectorType(FLOAT, 16)
_PAIRS = ir.VectorType(_BFloat(), 32)


def _multiplier(builder: Any, half: bool) -> tuple[Any, Callable[[Any, Any, Any], Any]]:
    """The type of a vector of factors, and a function (sums, factors, factors) -> sums."""
    name = "llvm.x86.avx512bf16.dpbf16ps.512" if half else "llvm.fma.v16f32"
    factors = _PAIRS if half else _VECTOR
    kind = ir.FunctionType(_VECTOR, [_VECTOR, factors, factors] if half else [_VECTOR, _VECTOR, _VECTOR])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    if half:
        return factors, lambda sums, one, two: builder.call(function, [sums, one, two])
    return factors, lambda sums, one, two: builder.call(function, [one, two, sums])


def _emit_tile(builder: Any, half: bool, add: bool, args: Any) -> None:
    a, a_row, a_step, b, b_step, steps, out, out_row = args
    factors, multiplied = _multiplier(builder, half)
    scalar = INT32 if half else FLOAT
    splat = ir.VectorType(scalar, 16)
    rows, halves = range(ROWS), range(PANEL // 16)

    def at(address: Any, kind: Any) -> Any:
        return builder.inttoptr(address, kind.as_pointer())

    places = [
        [builder.add(builder.add(out, builder.mul(out_row, INT64(r))), INT64(64 * n)) for n in halves] for r in rows
    ]
    left = [builder.add(a, builder.mul(a_row, INT64(r))) for r in rows]
    none = ir.Constant(_VECTOR, [0.0] * 16)
    start = [[builder.load(at(places[r][n], _VECTOR), align=4) if add else none for n in halves] for r in rows]
    before, loop, after = builder.block, builder.append_basic_block("steps"), builder.append_basic_block("steps.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(INT64)
    step.add_incoming(INT64(0), before)
    sums = [[builder.phi(_VECTOR) for _ in halves] for _ in rows]
    b_at, a_at = builder.add(b, builder.mul(b_step, step)), builder.mul(a_step, step)
    right = [builder.load(at(builder.add(b_at, INT64(64 * n)), factors), align=4) for n in halves]
    following = builder.add(step, INT64(1))
    step.add_incoming(following, loop)
    undefined = ir.Constant(splat, ir.Undefined)
    found = []
    for r in rows:
        one = builder.load(at(builder.add(left[r], a_at), scalar), align=4)
        one = builder.insert_element(undefined, one, INT32(0))
        one = builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT32, 16), [0] * 16))
        found.append([multiplied(sums[r][n], builder.bitcast(one, factors), right[n]) for n in halves])
        for n in halves:
            sums[r][n].add_incoming(start[r][n], before)
            sums[r][n].add_incoming(found[r][n], loop)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    for r in rows:
        for n in halves:
            builder.store(found[r][n], at(places[r][n], _VECTOR), align=4)


def _tile_function(add: bool) -> Any:
    """A numba function ``(data, a, a_row, a_step, b, b_step, steps, out, out_row)``.

    out [ROWS, PANEL] = (out +) a [ROWS, steps] @ b [steps, PANEL]: addresses, and bytes from a row or step to the
    next. steps is at least 1. Steps are of pairs of bfloat16 where that is data's dtype.
    """

    @intrinsic
    def tile(
        typing: Any, data: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, steps: Any, out: Any, out_row: Any
    ) -> Any:
        half = data.dtype is types.uint16

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit_tile(builder, half, add, args[1:])
            return context.get_dummy_value()

        return types.void(data, *[types.int64] * 8), generate

    return tile


set_tile, add_tile = _tile_function(add=False), _tile_function(add=True)


_sight = _numba_loops.sight_of(ROWS, PANEL)


@_njit
def _across(data: Any, f: Any, seen: Seen, a: int, step: int, tensor: int, out: int) -> None:
    """Where some query sees some key."""
    pitch, steps = f[AT.pitch], (f[AT.d] + 1) // 2 if is_half(data) else f[AT.d]
    for column in range(0, seen.width, PANEL):
        panel = f[tensor] + 4 * (seen.row * f[AT.padded] + seen.begin + column) * steps
        for r in range(0, seen.rows, ROWS):
            low, high = _sight(f, seen, r)
            if low <= column < high:
                to = out + 4 * (r * pitch + column)
                set_tile(data, a + 4 * r * step, 4 * step, 4, panel, 4 * PANEL, steps, to, 4 * pitch)


@_njit
def _down(data: Any, f: Any, seen: Seen, a: int, tensor: int, alpha: float, beta: float, out: int) -> None:
    """For the keys that some query sees. Two elements of two bytes are a step."""
    pitch, wide, padded, size = f[AT.pitch], f[AT.wide], f[AT.padded], 2 if is_half(data) else 4
    for r in range(0, seen.rows, ROWS):
        low, high = _sight(f, seen, r)
        if low < high:
            left, steps = a + size * (r * pitch + low), ((high - low) * size + 3) // 4
            for column in range(0, wide, PANEL):
                panel = f[tensor] + size * ((seen.row * wide + column) * padded + (seen.begin + low) * PANEL)
                add_tile(data, left, size * pitch, 4, panel, 4 * PANEL, steps, out + 4 * (r * wide + column), 4 * wide)


@_njit
def _transposed(f: Any, seen: Seen, a: int, b: int, step: int, alpha: float, out: int) -> None:
    """For queries that see some key."""
    pitch, wide, group = f[AT.pitch], f[AT.wide], f[AT.group]
    for key in range(0, seen.width, ROWS):
        start, end = 0, seen.queries
        if f[AT.last]:
            while start < end and after_of(f, seen.batch, seen.start + start) <= seen.begin + key:
                start += 1
        else:
            start = max(seen.begin + key - (f[AT.keys] - f[AT.time] + seen.start), 0)
        while end > start and seen.first[end - 1] >= seen.begin + key + ROWS:
            end -= 1
        if start < end:
            left, steps = a + 4 * (start * group * pitch + key), (end - start) * group
            for column in range(0, wide, PANEL):
                right, to = b + 4 * (start * group * step + column), out + 4 * (key * wide + column)
                add_tile(floats(a, 0), left, 4, 4 * pitch, right, 4 * step, steps, to, 4 * wide)


@_njit
def _tile_of(f: Any, span: int) -> Any:
    return f[AT.tile]


_attend = _numba_loops.forward(_across, _down, _sight, _tile_of)
_gradient = _numba_loops.backward(_across, _down, _transposed, _sight, _tile_of)


def attend(data: Any) -> None:
    """See _numba_loops.py."""
    _attend(data)


def gradient(data: Any) -> None:
    """See _numba_loops.py."""
    _gradient(data)
