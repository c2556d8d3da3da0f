"""The compiled code of numba.sequential: block_diagonal_scan and its gradient, by rows of channels.

A row is what one time step holds of one group of channels: contiguous, and so are the matrices of its blocks. A vector
of V channels holds V / n whole blocks, whose matrices are the next n vectors of V elements of a: element f of them
belongs to row f // n, entry f % n of it. So a row needs no gathers:

    forward:   h := x + sum over n neighbouring elements of a * spread(h)
    backward:  g = dh + c,  dx = g,  da = repeat(g) * spread(h_{t-1})
               c := sum over every n-th element of a block of a * repeat(g)

where element f of spread(h) is h[f // n^2 * n + f % n] and of repeat(g) is g[f // n]: constant shuffles of one vector.
The sums are trees of log2(n) levels. The state of a group, in the accumulator's dtype, stays in the first-level cache.
n is known when a kernel is compiled; where it is no power of two, V = n and a row's sum goes element by element.

Kernels are as in _native.py, their rows as in _native_rows.py; the pointer's type holds n.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numba
from llvmlite import ir
from numba import types

from griffin_kernels.ops import _native_rows
from griffin_kernels.ops._native import INT32, INT64, Strided, data_bytes, field, finish, places, take
from griffin_kernels.ops._native_rows import (
    STREAM,
    RowLanes,
    bounds,
    copy,
    input_at,
    is_set,
    known_number,
    row,
    wide_bytes,
    zero,
)

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements. Data unless said otherwise; wide: accumulator."""

    reset: Strided  # bool [B, T], or 0
    a: Strided  # [B, T, D * n], contiguous within a step
    x: Strided  # x, or dh
    h: Strided  # read by the gradient
    items: int  # sequences * groups
    groups: int  # of channels
    group: int  # channels in a group, a multiple of n
    width: int  # D
    time: int  # T
    offsets: int  # int32 [N+1] of packed sequences, or 0
    backwards: int  # 1: this kernel visits time from the last step to the first
    stream: int  # 1: write outputs past the caches; every vector of them must be aligned
    initial: int  # wide [N, D]: state that enters a sequence, or 0
    final: int  # wide [N, D]: the running state; what leaves the sequence
    before: int  # wide [N, D]: h0, for the gradient, or 0
    out: int  # h, or dx; [B, T, D] contiguous
    da: int  # [B, T, D * n] contiguous


AT = places(Fields)

FILES = (__file__, str(_native_rows.__file__))
"""Sources that the kernels are made from, besides _native.py."""


def _is_power(number: int) -> bool:
    """Whether a number is a power of two."""
    return number & (number - 1) == 0


class _BlockLanes(RowLanes):
    """Lanes of whole blocks of ``number`` channels."""

    @staticmethod
    def widths(element: Any, number: int) -> tuple[int, int]:
        """16 channels, 8 of float64, or a block if that is larger or no power of two; what is left goes by blocks."""
        return max(number, 8 if element is types.float64 else 16) if _is_power(number) else number, number

    @staticmethod
    def whole(builder: Any, channels: Any, vector: int) -> Any:
        # a vector may be no power of two
        return builder.mul(builder.sdiv(channels, INT64(vector)), INT64(vector))

    @property
    def streams(self) -> bool:
        return super().streams and _is_power(self.number)

    def of(self, scalar: Any) -> Any:
        """One lane is a vector too: it is shuffled."""
        return ir.VectorType(scalar, self.count)

    def matrices(self, part: int) -> _BlockLanes:
        """Vector ``part`` of the n vectors of these channels' matrices."""
        first = self.builder.mul(self.index, INT64(self.number))
        return replace(self, index=self.builder.add(first, INT64(part * self.count)))

    def _shuffled(self, first: Any, second: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))

    def _placed(self, value: Any, part: int, lane: Callable[[int], int]) -> Any:
        elements = range(part * self.count, (part + 1) * self.count)
        return self._shuffled(value, value, [lane(f) for f in elements])

    def spread(self, value: Any, part: int) -> Any:
        """For each element of vector ``part`` of the matrices: the value of its column's channel."""
        return self._placed(value, part, lambda f: f // self.number**2 * self.number + f % self.number)

    def repeat(self, value: Any, part: int) -> Any:
        """For each element of vector ``part`` of the matrices: the value of its row's channel."""
        return self._placed(value, part, lambda f: f // self.number)

    def _fold(self, vectors: list[Any], unit: int) -> Any:
        """n vectors, seen as pieces of ``unit`` lanes: the sums of every n neighbouring pieces, one vector."""
        if unit == self.count:
            while len(vectors) > 1:
                pairs = [self.add(*vectors[i : i + 2]) for i in range(0, len(vectors) - 1, 2)]
                vectors = pairs + vectors[2 * len(pairs) :]
            return vectors[0]
        even = [2 * piece * unit + lane for piece in range(self.count // unit) for lane in range(unit)]
        odd = [lane + unit for lane in even]
        while len(vectors) > 1:
            couples = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
            vectors = [self.add(self._shuffled(u, v, even), self._shuffled(u, v, odd)) for u, v in couples]
        return vectors[0]

    def sum_columns(self, vectors: list[Any]) -> Any:
        """Element [j, k] of every block summed over j, for channel k."""
        return self._fold(vectors, self.number)

    def sum_rows(self, vectors: list[Any]) -> Any:
        """Element [j, k] of every block summed over k, for channel j."""
        if _is_power(self.number):
            return self._fold(vectors, 1)
        total = self.zero()
        for j, vector in enumerate(vectors):
            entries = [self.builder.extract_element(vector, INT32(k)) for k in range(self.number)]
            total = self.builder.insert_element(total, functools.reduce(self.builder.fadd, entries), INT32(j))
        return total


_row = row(_BlockLanes, (0, STREAM))


@_row
def _forward_row(v: _BlockLanes, x: Any, a: Any, out: Any, carry: Any) -> None:
    state = v.read(carry)
    products = [v.multiply(v.matrices(i).load(a), v.spread(state, i)) for i in range(v.number)]
    value = v.add(v.sum_rows(products), v.load(x))
    v.write(value, carry)
    v.store(value, out)


def _gradient(v: _BlockLanes, before: Any, dh: Any, a: Any, dx: Any, da: Any, carry: Any) -> None:
    g = v.add(v.load(dh), v.read(carry))
    v.store(g, dx)
    products = []
    for i in range(v.number):
        repeated = v.repeat(g, i)
        products.append(v.multiply(v.matrices(i).load(a), repeated))
        v.matrices(i).store(v.multiply(repeated, v.spread(before, i)), da)
    v.write(v.sum_columns(products), carry)


@_row
def _backward_row(v: _BlockLanes, dh: Any, a: Any, before: Any, dx: Any, da: Any, carry: Any) -> None:
    _gradient(v, v.load(before), dh, a, dx, da, carry)


@_row
def _backward_first_row(v: _BlockLanes, dh: Any, a: Any, before: Any, dx: Any, da: Any, carry: Any) -> None:
    _gradient(v, v.read(before), dh, a, dx, da, carry)


@_row
def _backward_stop_row(v: _BlockLanes, dh: Any, dx: Any, da: Any, carry: Any) -> None:
    # no state entered this step: neither a nor an earlier step has a gradient, whatever g is
    v.store(v.add(v.load(dh), v.read(carry)), dx)
    for i in range(v.number):
        v.matrices(i).store(v.zero(), da)
    v.write(v.zero(), carry)


_zero_row, _copy_row = row(_BlockLanes)(zero), row(_BlockLanes)(copy)


@_njit
def _output(data: Any, name: int, batch: int, step: int, element: int) -> tuple[int, int]:
    """(address, bytes per step) of an output of ``step`` elements per step, from ``element`` of a step on."""
    size = data_bytes(data)
    return field(data, name) + (batch * field(data, AT.time) * step + element) * size, step * size


@_njit
def _wide(data: Any, name: int, row: int, channel: int) -> int:
    """Address of a row of a wide [rows, D] array, from ``channel`` on."""
    return field(data, name) + (row * field(data, AT.width) + channel) * wide_bytes(data)


@_njit
def _entered(data: Any, sequence: int, channel: int, channels: int) -> int:
    """Address of a group's running state, set to what enters its sequence."""
    carry = _wide(data, AT.final, sequence, channel)
    if field(data, AT.initial) == 0:
        _zero_row(data, 0, channels, (carry,))
    else:
        _copy_row(data, 0, channels, (_wide(data, AT.initial, sequence, channel), carry))
    return carry


def forward(data: Any) -> None:
    """h and the running states."""
    groups, group, width, size = (
        field(data, AT.groups),
        field(data, AT.group),
        field(data, AT.width),
        known_number(data),
    )
    backwards, stream = field(data, AT.backwards), field(data, AT.stream)
    item = take(data, 0)
    while item < field(data, AT.items):
        sequence, channel = item // groups, item % groups * group
        channels = min(group, width - channel)
        batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
        carry = _entered(data, sequence, channel, channels)
        x, x_step = input_at(data, AT.x, batch, channel)
        a, a_step = input_at(data, AT.a, batch, channel * size)
        out, out_step = _output(data, AT.out, batch, width, channel)
        for k in range(end - begin):
            t = end - 1 - k if backwards else begin + k
            if is_set(data, AT.reset, batch, t):
                _zero_row(data, 0, channels, (carry,))
            _forward_row(data, stream, channels, (x + t * x_step, a + t * a_step, out + t * out_step, carry))
        item = take(data, 0)
    finish(data)


def backward(data: Any) -> None:
    """dx, da and the running gradients."""
    groups, group, width, size = (
        field(data, AT.groups),
        field(data, AT.group),
        field(data, AT.width),
        known_number(data),
    )
    backwards, stream = field(data, AT.backwards), field(data, AT.stream)
    item = take(data, 0)
    while item < field(data, AT.items):
        sequence, channel = item // groups, item % groups * group
        channels = min(group, width - channel)
        batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
        carry = _entered(data, sequence, channel, channels)
        dh, dh_step = input_at(data, AT.x, batch, channel)
        a, a_step = input_at(data, AT.a, batch, channel * size)
        h, h_step = input_at(data, AT.h, batch, channel)
        dx, dx_step = _output(data, AT.out, batch, width, channel)
        da, da_step = _output(data, AT.da, batch, width * size, channel * size)
        for k in range(end - begin):
            t = end - 1 - k if backwards else begin + k
            later = t - 1 if backwards else t + 1  # the step before, in the order of the forward pass
            dh_row, a_row, dx_row, da_row = dh + t * dh_step, a + t * a_step, dx + t * dx_step, da + t * da_step
            first = k == end - begin - 1
            if is_set(data, AT.reset, batch, t) or (first and field(data, AT.before) == 0):
                _backward_stop_row(data, stream, channels, (dh_row, dx_row, da_row, carry))
            elif first:
                before = _wide(data, AT.before, sequence, channel)
                _backward_first_row(data, stream, channels, (dh_row, a_row, before, dx_row, da_row, carry))
            else:
                rows = (dh_row, a_row, h + later * h_step, dx_row, da_row, carry)
                _backward_row(data, stream, channels, rows)
        item = take(data, 0)
    finish(data)
