"""Vectors of the numba scans' rows: what a step makes of a state and of its gradient, for gates and for matrices.

Where a kernel's pointer holds a number n, a step has a matrix for every block of n channels. A vector of V channels
holds V / n whole blocks, whose matrices are the next n vectors of V elements of a: element f of them belongs to row
f // n, entry f % n of it. So a row needs no gathers:

    forward:   h := x + sum over n neighbouring elements of a * spread(h)
    backward:  g = dh + c,  dx = g,  da = repeat(g) * spread(h_{t-1})
               c := sum over every n-th element of a block of a * repeat(g)

where element f of spread(h) is h[f // n^2 * n + f % n] and of repeat(g) is g[f // n]: constant shuffles of one vector.
The sums are trees of log2(n) levels. n is known when a kernel is compiled; where it is no power of two, V = n and a
row's sum goes element by element. A gate is its own spread, repeat and sum.
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
from griffin_kernels.ops._native_rows import STREAM, RowLanes

AHEAD = 2
"""Hint: ask for the next row of the inputs early."""


def _is_power(number: int) -> bool:
    """Whether a number is a power of two."""
    return number & (number - 1) == 0


class ScanLanes(RowLanes):
    """Lanes of a scan of gates."""

    @classmethod
    def of_data(cls, data: Any) -> type[RowLanes]:
        return _BlockLanes if isinstance(data.dtype, types.UniTuple) else cls

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

    def step(self, a: Any, state: Any, x: Any) -> Any:
        """a times a state, plus x. a: the address of the step's gates or matrices."""
        return self.multiply_add(self.load(a), state, x)

    def matrices(self, part: int) -> Any:
        """Vector ``part`` of the n vectors of these channels' matrices; of gates there is one."""
        return self

    def spread(self, value: Any, part: int) -> Any:
        """For each element of vector ``part`` of the matrices: the value of its column's channel."""
        return value

    def repeat(self, value: Any, part: int) -> Any:
        """For each element of vector ``part`` of the matrices: the value of its row's channel."""
        return value

    def sum_columns(self, vectors: list[Any]) -> Any:
        """Element [j, k] of every block summed over j, for channel k."""
        return vectors[0]


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

    def _shuffled(self, first: Any, second: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))

    def _placed(self, value: Any, part: int, lane: Callable[[int], int]) -> Any:
        elements = range(part * self.count, (part + 1) * self.count)
        return self._shuffled(value, value, [lane(f) for f in elements])

    def spread(self, value: Any, part: int) -> Any:
        return self._placed(value, part, lambda f: f // self.number**2 * self.number + f % self.number)

    def repeat(self, value: Any, part: int) -> Any:
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
        return self._fold(vectors, self.number)

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
