"""Products of bfloat16 matrices on the matrix unit of x86 processors (AMX), for numba.fused.

    C += A B, C of floats: blocks of 32 rows and 32 columns, whose sums stay in four of the eight tile registers

A is bfloat16 with contiguous rows, and its depth a multiple of 32. B is *paired*: a tile of 32 rows and 16 columns
holds, for each pair of rows, 16 times an element of the one and of the other: 16 lines of 64 bytes. A tile product is
8192 multiply-adds in 16 cycles, 16 times as many as of vectors: exact products, summed in float32.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 (tiles, palette 1), volume 2
(TDPBF16PS). Linux grants the tiles' state to a process that asks for it: Documentation/arch/x86/xstate.rst.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import registry

from griffin_kernels.ops._native import INT8, INT16, INT32, INT64, Lanes, element_of, intrinsic, known, loop
from griffin_kernels.ops.rg_lru._lru_numba_tiles import CHUNK, STRIDE

_njit: Any = numba.njit

BLOCK = 32
"""Rows, depth and columns that ``product`` works on at a time: two tiles of 16 rows, one of depth, two of columns."""
LINE = 64
"""Bytes of a tile's row."""
TILE = 16 * LINE
"""Bytes of a tile."""

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def compiles() -> bool:
    """Whether numba compiles for a processor that has the unit."""
    features = registry.cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return {"+amx-tile", "+amx-bf16", "+avx512f"} <= set(features)


@functools.cache
def granted() -> bool:
    """Whether this process may use the unit, which it asks the kernel for."""
    if not compiles() or sys.platform != "linux":
        return False
    refused: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
    return refused == 0


def multiplies(dtype: torch.dtype, n: int) -> bool:
    """Whether products of n x n matrices of this dtype can run on the unit, here and now."""
    return dtype == torch.bfloat16 and n % BLOCK == 0 and granted()


present = known(lambda data: int(compiles() and element_of(data) is types.uint16))
"""``(data)``: whether a kernel for this data is compiled for the unit."""


def _instruction(builder: Any, name: str, *args: Any) -> None:
    """Emit an instruction of the unit; nothing where there is none, since nobody gets there."""
    if compiles():
        module, name = builder.module, f"llvm.x86.{name}"
        kinds = [arg.type for arg in args]
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        builder.call(function, args)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT8.as_pointer())


@intrinsic
def configure(typing: Any, room: Any) -> Any:
    """All eight tiles with 16 rows of 64 bytes, on this thread. room: address of 64 bytes to write the palette to."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # palette 1, first row 0; from byte 16 on bytes of each tile's row as 16 bits, from 48 on its rows
        palette = bytes([1, *[0] * 15, *[LINE, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])
        for at, value in enumerate(palette):
            place = builder.add(args[0], INT64(at))
            builder.store(INT8(value), _pointer(builder, place))
        _instruction(builder, "ldtilecfg", _pointer(builder, args[0]))
        return context.get_dummy_value()

    return types.void(room), generate


@intrinsic
def release(typing: Any) -> Any:
    """Give the tiles back; a thread that holds them takes longer to switch."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _instruction(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def product(typing: Any, tiles: Any, depth: Any, a: Any, a_step: Any, b: Any, c: Any, c_step: Any) -> Any:
    """C += A B for a panel of 32 columns.

    tiles: blocks of rows. depth: tiles of it. B: for each tile of depth that of the first 16 columns, then the other.
    a_step, c_step: bytes from row to row.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tiles, depth, a, a_step, b, c, c_step = args

        def load(tile: int, address: Any, step: Any) -> None:
            _instruction(builder, "tileloadd64", INT8(tile), _pointer(builder, address), step)

        def further(address: Any, step: Any, rows: int) -> Any:
            return builder.add(address, builder.mul(step, INT64(rows)))

        def body(_: Any, a: Any, c: Any) -> Sequence[Any]:
            upper, lower = c, further(c, c_step, 16)
            sums = [builder.add(start, INT64(side * LINE)) for start in (upper, lower) for side in (0, 1)]
            for tile, address in enumerate(sums):
                load(tile, address, c_step)

            def deeper(_: Any, left: Any, right: Any) -> Sequence[Any]:
                load(4, left, a_step)
                load(5, further(left, a_step, 16), a_step)
                load(6, right, INT64(LINE))
                load(7, builder.add(right, INT64(TILE)), INT64(LINE))
                for tile in range(4):
                    _instruction(builder, "tdpbf16ps", INT8(tile), INT8(4 + tile // 2), INT8(6 + tile % 2))
                return builder.add(left, INT64(LINE)), builder.add(right, INT64(2 * TILE))

            loop(builder, INT64(0), depth, 1, deeper, (a, b))
            for tile, address in enumerate(sums):
                _instruction(builder, "tilestored64", INT8(tile), _pointer(builder, address), c_step)
            return further(a, a_step, BLOCK), further(c, c_step, BLOCK)

        loop(builder, INT64(0), tiles, 1, body, (a, c))
        return context.get_dummy_value()

    return types.void(tiles, depth, a, a_step, b, c, c_step), generate


@intrinsic
def pair(typing: Any, count: Any, first: Any, second: Any, target: Any) -> Any:
    """``count`` columns, a multiple of 16, of two rows of 16 bits as pairs."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, first, second, target = args
        v = Lanes(builder, 16)

        def piece(index: Any) -> Sequence[Any]:
            offset = builder.mul(index, INT64(2))
            rows = [v.pointer(builder.add(row, offset), INT16) for row in (first, second)]
            low, high = (builder.zext(builder.load(row, align=2), v.of(INT32)) for row in rows)
            both = builder.or_(low, builder.shl(high, v.constant(16, INT32)))
            builder.store(both, v.pointer(builder.add(target, builder.mul(index, INT64(4))), INT32), align=4)
            return ()

        loop(builder, INT64(0), count, 16, piece)
        return context.get_dummy_value()

    return types.void(count, first, second, target), generate


@intrinsic
def turn(typing: Any, rows: Any, count: Any, source: Any, source_step: Any, target: Any, target_step: Any) -> Any:
    """A transpose of 32 bits: element k of row r to element r of row k, for ``count`` elements of each of the rows."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, count, source, source_step, target, target_step = args

        def row(at: Any, source: Any, target: Any) -> Sequence[Any]:
            def element(_: Any, source: Any, target: Any) -> Sequence[Any]:
                value = builder.load(builder.inttoptr(source, INT32.as_pointer()), align=2)
                builder.store(value, builder.inttoptr(target, INT32.as_pointer()), align=4)
                return builder.add(source, INT64(4)), builder.add(target, target_step)

            loop(builder, INT64(0), count, 1, element, (source, target))
            return builder.add(source, source_step), builder.add(target, INT64(4))

        loop(builder, INT64(0), rows, 1, row, (source, target))
        return context.get_dummy_value()

    return types.void(rows, count, source, source_step, target, target_step), generate


class Room(NamedTuple):
    """Where a thread's matrices of bfloat16 lie, as bytes from the beginning of its room.

    rows: x [step, n]. panels: W of both gates, paired. Of the gradient: dz, of both gates [step, n]; transposed, W^T of
    both gates, paired; pairs, rows of x or dz in pairs [step / 2, n] as 32 bits; columns, x^T [n, step].
    """

    rows: int
    panels: int
    dz: tuple[int, int]
    transposed: int
    pairs: int
    columns: int
    bytes: int


@_njit
def room(n: int, step: int) -> Room:
    """The room for gate blocks of n channels and ``step`` rows, a multiple of BLOCK; the palette lies before it."""
    array, matrix = 2 * step * n, 2 * n * n
    begins = LINE + array + 2 * matrix
    return Room(
        LINE, LINE + array, (begins, begins + array), begins + 2 * array, begins + 2 * array + 2 * matrix,
        begins + 3 * array + 2 * matrix, begins + 4 * array + 2 * matrix,
    )  # fmt: skip


@_njit
def pack(weight: int, n: int, channels: int, target: int) -> None:
    """Columns of W [n, n] from an address on, paired, every second tile of the panels: the other gate's lie between."""
    for column in range(0, channels, 16):
        for line in range(n // 2):
            place = target + (column // 16 * (n // BLOCK) + line // 16) * 2 * TILE + line % 16 * LINE
            row = weight + 2 * line * 2 * n + 2 * column
            pair(16, row, row + 2 * n, place)


@_njit
def pack_transposed(weight: int, n: int, target: int) -> None:
    """W^T, paired. An element of W and its right neighbour are a pair of rows of W^T already."""
    for row in range(0, n, 16):
        for column in range(0, n, BLOCK):
            tile = (row // 32 * (n // BLOCK) + column // BLOCK) * 2 + row % 32 // 16
            turn(16, 16, weight + (row * n + column) * 2, 2 * n, target + tile * TILE, LINE)


@_njit
def through_weights(rows: int, n: int, source: int, panels: int, target: int, step: int) -> None:
    """C += A B for n columns; C: a block array of floats, rows STRIDE apart, ``step`` rows in each of several."""
    whole = step * 4 * STRIDE
    for column in range(0, n, BLOCK):
        place = target + column // CHUNK * whole + column % CHUNK * 4
        panel = panels + column // BLOCK * (n // BLOCK) * 2 * TILE
        product((rows + BLOCK - 1) // BLOCK, n // BLOCK, source, 2 * n, panel, place, 4 * STRIDE)


@_njit
def transpose(n: int, blocks: int, source: int, pairs: int, target: int, step: int) -> None:
    """Rows [32 blocks, n] of bfloat16 as columns [n, step]. pairs: room."""
    for row in range(0, blocks * BLOCK, 2):
        pair(n, source + row * 2 * n, source + (row + 1) * 2 * n, pairs + row * 2 * n)
    turn(blocks * 16, n, pairs, 4 * n, target, 2 * step)


@_njit
def over_rows(n: int, blocks: int, columns: int, dz: int, pairs: int, step: int, target: int) -> None:
    """dW += x^T dz over 32 blocks of rows; dW: floats [n, n]. columns: x^T. pairs: room."""
    for column in range(0, n, BLOCK):
        for row in range(0, blocks * BLOCK, 2):
            line = pairs + row // BLOCK * 2 * TILE + row % BLOCK // 2 * LINE
            first = dz + row * 2 * n + 2 * column
            pair(16, first, first + 2 * n, line)
            pair(16, first + LINE // 2, first + LINE // 2 + 2 * n, line + TILE)
        product(n // BLOCK, blocks, columns, 2 * step, pairs, target + 4 * column, 4 * n)
