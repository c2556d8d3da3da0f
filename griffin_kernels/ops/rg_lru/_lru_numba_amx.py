"""Products of gate blocks, of bfloat16, on the matrix unit of x86 processors (AMX), for numba.fused.

Layouts of what is multiplied there; the unit itself is in ops/_native_amx.py.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import torch
from numba import types

from griffin_kernels.ops import _native_amx
from griffin_kernels.ops._native import element_of, known
from griffin_kernels.ops._native_amx import BLOCK, LINE, TILE, add_product, pair, turn
from griffin_kernels.ops.rg_lru._lru_numba_tiles import CHUNK, STRIDE

_njit: Any = numba.njit


def multiplies(dtype: torch.dtype, n: int) -> bool:
    """Whether products of n x n matrices of this dtype can run on the unit, here and now."""
    return dtype == torch.bfloat16 and n % BLOCK == 0 and _native_amx.granted()


present = known(lambda data: int(_native_amx.compiles() and element_of(data) is types.uint16))
"""``(data)``: whether a kernel for this data is compiled for the unit."""


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
    """The room for gate blocks of n channels and ``step`` rows, a multiple of BLOCK."""
    array, matrix = 2 * step * n, 2 * n * n
    begins = array + 2 * matrix
    return Room(
        0, array, (begins, begins + array), begins + 2 * array, begins + 2 * array + 2 * matrix,
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
        add_product((rows + BLOCK - 1) // BLOCK, n // BLOCK, source, 2 * n, panel, place, 4 * STRIDE)


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
        add_product(n // BLOCK, blocks, columns, 2 * step, pairs, target + 4 * column, 4 * n)
