"""Vectors of the numba scans' rows: what a step makes of a state and of its gradient, for gates of every kind.

Where a kernel's pointer holds a number n, a step has a matrix for every block of n channels. A vector of V channels
holds V / n whole blocks, whose matrices are the next n vectors of V elements of a: element f of them belongs to row
f // n, entry f % n of it. So a row needs no gathers:

    forward:   h := x + sum over n neighbouring elements of a * spread(h)
    backward:  g = dh + c,  dx = g,  da = repeat(g) * spread(h_{t-1})
               c := sum over every n-th element of a block of a * repeat(g)

where element f of spread(h) is h[f // n^2 * n + f % n] and of repeat(g) is g[f // n]: constant shuffles of one vector.
The sums are trees of log2(n) levels. n is known when a kernel is compiled; where it is no power of two, V = n and a
row's sum goes element by element. A gate is its own spread, repeat and sum.

Where that number is ``PAIRS``, channels 2 k and 2 k + 1 are the real and the imaginary part of a complex number, of a
and of the state alike: h := x + real(a) * h + imaginary(a) * swapped(h) * (-1, 1), and what is handed back has the
conjugate of a.

From ``GATES`` on it says what gates are: logarithms (LOG), what convex scans have (CONVEX), in the accumulator's dtype
beside narrower data (WIDE), and what a kernel makes of them all: a sum of their gradients (SUMMED), or a product
(PRODUCT); and whether states are kept in a pool (KEPT). Each is known when a kernel is compiled.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llvmlite import ir
from numba import types

from griffin_kernels.ops._native import INT8, INT32, INT64
from griffin_kernels.ops._native_exp import exponentials
from griffin_kernels.ops._native_rows import STREAM, RowLanes
from griffin_kernels.ops.linear_scan.op import MODULUS

AHEAD = 2
"""Hint: ask for the next row of the inputs early."""


PAIRS = 0
"""In place of the size of matrices: complex gates."""

GATES = 2**20
"""In place of the size of matrices: gates with options, which are added to it."""

LOG, CONVEX, WIDE, SUMMED, PRODUCT, KEPT = 1, 2, 4, 8, 16, 32


def has(number: int, option: int) -> bool:
    """Whether the number in a kernel's pointer has an option of gates."""
    return number >= GATES and bool((number - GATES) & option)


def size_of(number: int) -> int:
    """Elements of a for each channel."""
    return 1 if number >= GATES else max(1, number)


def _is_power(number: int) -> bool:
    """Whether a number is a power of two."""
    return number & (number - 1) == 0


class ScanLanes(RowLanes):
    """Lanes of a scan of gates."""

    @classmethod
    def of_data(cls, data: Any) -> type[RowLanes]:
        if not isinstance(data.dtype, types.UniTuple):
            return cls
        if data.dtype.count >= GATES:
            return GateLanes
        return _PairLanes if data.dtype.count == PAIRS else _BlockLanes

    def ahead(self, *addresses: Any) -> None:
        """With the hint, ask for the cache line of data at these channels of other rows; anywhere is safe."""
        if self.hints & AHEAD:
            kinds = [INT8.as_pointer(), INT32, INT32, INT32]
            module, name = self.builder.module, "llvm.prefetch.p0"
            function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
            for address in addresses:
                line = self.builder.bitcast(self.data_at(address), kinds[0])
                self.builder.call(function, [line, INT32(0), INT32(3), INT32(1)])  # read, keep in L1, data

    def grown(self, product: Any, gate: Any) -> Any:
        """The product with one more gate, NaN from the first gate beyond [-1, 1] on."""
        beyond = self.builder.fcmp_ordered(">", self._call("fabs", gate), self.constant(1.0))
        return self.builder.select(beyond, self.constant(math.nan), self.multiply(gate, product))

    def lost(self, value: Any) -> Any:
        """Where a value is NaN."""
        return self.builder.fcmp_unordered("uno", value, value)

    def endless(self, value: Any) -> Any:
        """Where a value is infinite or NaN."""
        return self.lost(self.builder.fsub(value, value))

    def one(self) -> Any:
        """The gate that changes nothing."""
        return self.constant(1.0)

    def conjugate(self, gate: Any) -> Any:
        """The gate that a gradient goes through."""
        return gate

    def through(self, gate: Any, state: Any, x: Any) -> Any:
        """A gate times a state, plus x."""
        return self.multiply_add(gate, state, x)

    def gate(self, a: Any) -> Any:
        """A step's gates, at an address."""
        return self.load(a)

    def step(self, a: Any, state: Any, x: Any) -> Any:
        """a times a state, plus x. a: the address of the step's gates or matrices."""
        return self.through(self.load(a), state, x)

    def back(self, a: Any, g: Any) -> Any:
        """What a step hands back of a gradient. a: the address of its gates or matrices."""
        return self.multiply(self.load(a), g)

    def outer(self, g: Any, before: Any, part: int) -> Any:
        """Vector ``part`` of the gradient of a, from those of the state and the state before."""
        return self.multiply(g, before)

    @property
    def parts(self) -> int:
        """Vectors of a for a vector of channels."""
        return size_of(self.number)

    def matrices(self, part: int) -> Any:
        """Vector ``part`` of the n vectors of these channels' matrices; of gates there is one."""
        return self

    def _shuffled(self, first: Any, second: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))


class GateLanes(ScanLanes):
    """Lanes of gates with options."""

    def has(self, option: int) -> bool:
        return has(self.number, option)

    def gate_and_share(self, a: Any) -> tuple[Any, Any]:
        """A step's gates, and what x is multiplied by: 1 - a of a convex scan, otherwise None."""
        held = self.read(a) if self.has(WIDE) else self.load(a)
        if not self.has(LOG):
            return held, self.subtract(self.constant(1.0), held) if self.has(CONVEX) else None
        gate, less = exponentials(self, held)
        return gate, self.builder.fneg(less) if self.has(CONVEX) else None

    def gate(self, a: Any) -> Any:
        return self.gate_and_share(a)[0]

    def step(self, a: Any, state: Any, x: Any) -> Any:
        gate, share = self.gate_and_share(a)
        return self.through(gate, state, x if share is None else self.multiply(share, x))

    def back(self, a: Any, g: Any) -> Any:
        return self.multiply(self.gate(a), g)


class _BlockLanes(ScanLanes):
    """Lanes of whole blocks of ``number`` channels."""

    HINTS = STREAM

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
        first = self.builder.mul(self.index, INT64(self.number))
        return replace(self, index=self.builder.add(first, INT64(part * self.count)))

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

    def back(self, a: Any, g: Any) -> Any:
        products = [self.multiply(self.matrices(i).load(a), self.repeat(g, i)) for i in range(self.number)]
        return self._fold(products, self.number)  # element [j, k] of every block summed over j, for channel k

    def outer(self, g: Any, before: Any, part: int) -> Any:
        return self.multiply(self.repeat(g, part), self.spread(before, part))

    def step(self, a: Any, state: Any, x: Any) -> Any:
        products = [self.multiply(self.matrices(i).load(a), self.spread(state, i)) for i in range(self.number)]
        return self.add(self._sum_rows(products), x)

    def _sum_rows(self, vectors: list[Any]) -> Any:
        """Element [j, k] of every block summed over k, for channel j."""
        if _is_power(self.number):
            return self._fold(vectors, 1)
        total = self.zero()
        for j, vector in enumerate(vectors):
            entries = [self.builder.extract_element(vector, INT32(k)) for k in range(self.number)]
            total = self.builder.insert_element(total, functools.reduce(self.builder.fadd, entries), INT32(j))
        return total


class _PairLanes(ScanLanes):
    """Lanes of complex numbers, real and imaginary parts in turns."""

    @staticmethod
    def widths(element: Any, number: int) -> tuple[int, int]:
        return RowLanes.widths(element, number)[0], 2

    def _alternating(self, real: float, imaginary: float) -> Any:
        return ir.Constant(self.of(self.wide), [real, imaginary] * (self.count // 2))

    def _each(self, value: Any, real: int, imaginary: int) -> Any:
        """Of every number, its part ``real`` (0 or 1) in the first lane and ``imaginary`` in the second."""
        lanes = [pair + at for pair in range(0, self.count, 2) for at in (real, imaginary)]
        return self._shuffled(value, value, lanes)

    def _turned(self, p: Any, q: Any, conjugate: bool) -> tuple[Any, Any]:
        """The factors of what the imaginary part of p, or of its conjugate, adds to the product with q."""
        signs = self._alternating(1.0, -1.0) if conjugate else self._alternating(-1.0, 1.0)
        return self.multiply(self._each(p, 1, 1), signs), self._each(q, 1, 0)

    def one(self) -> Any:
        return self._alternating(1.0, 0.0)

    def conjugate(self, gate: Any) -> Any:
        return self.multiply(gate, self._alternating(1.0, -1.0))

    def through(self, gate: Any, state: Any, x: Any) -> Any:
        return self.multiply_add(*self._turned(gate, state, False), self.multiply_add(self._each(gate, 0, 0), state, x))

    def _conjugate_times(self, p: Any, q: Any) -> Any:
        return self.multiply_add(*self._turned(p, q, True), self.multiply(self._each(p, 0, 0), q))

    def back(self, a: Any, g: Any) -> Any:
        return self._conjugate_times(self.load(a), g)

    def outer(self, g: Any, before: Any, part: int) -> Any:
        return self._conjugate_times(before, g)

    def grown(self, product: Any, gate: Any) -> Any:
        squares = self.multiply(gate, gate)
        beyond = self.builder.fcmp_ordered(">", self.add(squares, self._each(squares, 1, 0)), self.constant(MODULUS**2))
        return self.builder.select(beyond, self.constant(math.nan), self.through(gate, product, self.zero()))

    def lost(self, value: Any) -> Any:
        """Where either part is NaN."""
        return self.builder.fcmp_unordered("uno", value, self._each(value, 1, 0))
