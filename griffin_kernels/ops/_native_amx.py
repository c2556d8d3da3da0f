"""Products of bfloat16 matrices on the matrix unit of x86 processors (AMX), for native kernels.

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
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, registry

from griffin_kernels.ops._native import INT8, INT16, INT32, INT64, Lanes, intrinsic, loop

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


def _instruction(builder: Any, name: str, *args: Any) -> None:
    """Emit an instruction of the unit; nothing where there is none, since nobody gets there."""
    if compiles():
        module, name = builder.module, f"llvm.x86.{name}"
        kinds = [arg.type for arg in args]
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        builder.call(function, args)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT8.as_pointer())


# palette 1, first row 0; from byte 16 on bytes of each tile's row as 16 bits, from 48 on its rows
_PALETTE = bytes([1, *[0] * 15, *[LINE, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])


@intrinsic
def configure(typing: Any) -> Any:
    """All eight tiles with 16 rows of 64 bytes, on this thread."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        palette = cgutils.alloca_once_value(builder, cgutils.make_bytearray(_PALETTE))
        _instruction(builder, "ldtilecfg", builder.bitcast(palette, INT8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def release(typing: Any) -> Any:
    """Give the tiles back; a thread that holds them takes longer to switch."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _instruction(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def _product_function(add: bool) -> Any:
    """A numba function ``(tiles, depth, a, a_step, b, c, c_step)``: C = (C +) A B for a panel of 32 columns.

    tiles: blocks of rows. depth: tiles of it. B: for each tile of depth that of the first 16 columns, then the other.
    a_step, c_step: bytes from row to row.
    """

    @intrinsic
    def product(typing: Any, tiles: Any, depth: Any, a: Any, a_step: Any, b: Any, c: Any, c_step: Any) -> Any:
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
                    if add:
                        load(tile, address, c_step)
                    else:
                        _instruction(builder, "tilezero", INT8(tile))

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

    return product


add_product, set_product = _product_function(add=True), _product_function(add=False)


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


@intrinsic
def turn_tile(typing: Any, source: Any, source_step: Any, target: Any, target_step: Any) -> Any:
    """``turn`` of 16 elements of 16 rows, in registers: four rounds that interleave rows i and i + 8."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_step, target, target_step = args
        v = Lanes(builder, 16)

        def place(address: Any, step: Any, row: int) -> Any:
            return v.pointer(builder.add(address, builder.mul(step, INT64(row))), INT32)

        rows = [builder.load(place(source, source_step, row), align=2) for row in range(16)]
        picks = [[half + lane // 2 + lane % 2 * 16 for lane in range(16)] for half in (0, 8)]
        masks = [ir.Constant(v.of(INT32), pick) for pick in picks]
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[i], rows[i + 8], mask) for i in range(8) for mask in masks]
        for row, value in enumerate(rows):
            builder.store(value, place(target, target_step, row), align=4)
        return context.get_dummy_value()

    return types.void(source, source_step, target, target_step), generate
