"""What native kernels over rows are made of: a row is what one time step holds of a block of channels, contiguous.

A row is worked on a vector at a time, in the accumulator's dtype, and what is left of it channel by channel (or gate
block by gate block). Rows are emitted as LLVM vectors: the loop vectoriser gives up on streams that might overlap, and
bfloat16 and float16 are widened and rounded in registers. Where a number is known when a kernel is compiled (taps of a
convolution, the size of a matrix), the pointer's type holds it.

Three integers of a kernel in a row say where an input, or a mask, is: its address, the stride of batch rows, that of
steps. ``name`` below is the index of the first of them.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
from numba import types

from griffin_kernels.ops._native import (
    BYTES,
    CACHE_LINE,
    INT64,
    Lanes,
    data_bytes,
    element_of,
    field,
    int8_at,
    int32_at,
    intrinsic,
    known,
    loop,
)

_njit: Any = numba.njit

STREAM = 1
"""Hint: write outputs past the caches; every whole vector of them must be aligned."""


def number_of(data: Any) -> Any:
    """The number that the type of a kernel's pointer holds; 1 where it holds none."""
    return data.dtype.count if isinstance(data.dtype, types.UniTuple) else 1


@dataclass(frozen=True, kw_only=True)
class RowLanes(Lanes):
    """Lanes of a row; addresses are of the row's first channel."""

    number: int  # known when compiled
    index: Any  # of the first lane
    hints: int

    HINTS = -1  # those that change anything, together

    @classmethod
    def of_data(cls, data: Any) -> type[RowLanes]:
        """What has the lanes of a kernel's pointer, by its type."""
        return cls

    @staticmethod
    def widths(element: Any, number: int) -> tuple[int, int]:
        """Channels of a vector, a cache line of data, and how many at a time what is left of a row goes."""
        return CACHE_LINE // BYTES[element], 1

    @staticmethod
    def whole(builder: Any, channels: Any, vector: int) -> Any:
        """Channels of a row that go by vectors, whose width is a power of two."""
        return builder.and_(channels, INT64(-vector))

    @property
    def streams(self) -> bool:
        """Whether outputs go past the caches."""
        return bool(self.hints & STREAM)

    def pointer(self, address: Any, scalar: Any) -> Any:
        row = self.builder.inttoptr(address, scalar.as_pointer())
        return self.builder.bitcast(self.builder.gep(row, [self.index]), self.of(scalar).as_pointer())

    def store(self, value: Any, address: Any, stream: bool = False) -> None:
        """As hinted."""
        super().store(value, address, stream or self.streams)

    def zero(self) -> Any:
        return self.constant(0.0)


def row(lanes: type[RowLanes] = RowLanes, hints: tuple[int, ...] = (0,)) -> Callable[[Callable[..., None]], Any]:
    """Makes a numba function ``(data, hint, channels, numbers)``, which runs ``emit(lanes, *numbers)`` over a row.

    hints: values of ``hint`` that it knows, 0 first; the loop over vectors is emitted once for each.
    """

    def decorated(emit: Callable[..., None]) -> Any:
        @intrinsic
        def run(typing: Any, data: Any, hint: Any, channels: Any, numbers: Any) -> Any:
            element, number, kind = element_of(data), number_of(data), lanes.of_data(data)
            vector, single = kind.widths(element, number)
            values = list(dict.fromkeys(value & kind.HINTS for value in hints))

            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                _, hint, channels, packed = args
                unpacked = [builder.extract_value(packed, i) for i in range(len(numbers))]

                def part(start: Any, end: Any, count: int, hint: int) -> None:
                    def body(index: Any) -> Sequence[Any]:
                        emit(kind(builder, count, element, number=number, index=index, hints=hint), *unpacked)
                        return ()

                    loop(builder, start, end, count, body)

                whole = kind.whole(builder, channels, vector)
                blocks = [builder.append_basic_block(f"hint.{value}") for value in values]
                done = builder.append_basic_block("hint.end")
                switch = builder.switch(hint, blocks[0])
                for value, block in zip(values, blocks, strict=True):
                    if block is not blocks[0]:
                        switch.add_case(INT64(value), block)
                    builder.position_at_end(block)
                    part(INT64(0), whole, vector, value)
                    builder.branch(done)
                builder.position_at_end(done)
                if vector != single:
                    part(whole, channels, single, 0)
                return context.get_dummy_value()

            return types.void(data, hint, channels, numbers), generate

        return run

    return decorated


def zero(v: RowLanes, target: Any) -> None:
    v.write(v.zero(), target)


def copy(v: RowLanes, source: Any, target: Any) -> None:
    v.write(v.read(source), target)


known_number = known(number_of)
wide_bytes = known(lambda data: 8 if element_of(data) is types.float64 else 4)  # of one element of the accumulator


@_njit
def input_at(data: Any, name: int, batch: int, element: int) -> tuple[int, int]:
    """(address, bytes per step) of an input in one batch row, from ``element`` of a step on."""
    size = data_bytes(data)
    return field(data, name) + (batch * field(data, name + 1) + element) * size, field(data, name + 2) * size


@_njit
def is_set(data: Any, name: int, batch: int, t: int) -> bool:
    """Whether there is a mask [B, T] and it holds for a step."""
    mask = field(data, name)
    return mask != 0 and int8_at(mask, batch * field(data, name + 1) + t * field(data, name + 2)) != 0


@_njit
def bounds(offsets: int, time: int, sequence: int) -> tuple[int, int, int]:
    """(batch row, first time, end time) of a sequence. offsets: int32 [N+1] of packed sequences, or 0."""
    if offsets == 0:
        return sequence, 0, time
    return 0, int32_at(offsets, sequence), int32_at(offsets, sequence + 1)
