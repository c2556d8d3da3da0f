"""The compiled code of numba.amx: products of bfloat16 on the matrix unit of x86 processors, 32 rows by 32 columns.

Keys and values are laid out once per call by a kernel of its own, in paired tiles as ops/_native_amx.py has them:

across: [B * Hkv, S / 32, wide / 32, 2 tiles of 16 keys]    depth: channels
down: [B * Hkv, wide / 32, S / 32, 2 tiles of 16 channels]  depth: keys

with zeros beyond S and d, so that an item is 32 keys of a head. A tile of scores is left out where no query of its 32
rows sees a key of it, and so are keys of the other product. Scores are not rounded, weights are. See _numba_loops.py.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from griffin_kernels.ops import _native_amx
from griffin_kernels.ops._native import places, take
from griffin_kernels.ops._native_amx import BLOCK, LINE, TILE, add_product, pair, set_product, turn_tile
from griffin_kernels.ops.local_attention import _numba_fields as fields
from griffin_kernels.ops.local_attention import _numba_loops, _numba_softmax
from griffin_kernels.ops.local_attention import _numba_rows as vectors
from griffin_kernels.ops.local_attention._numba_fields import AT, Headed, fields_of
from griffin_kernels.ops.local_attention._numba_loops import Seen

_njit: Any = numba.njit

FILES = (__file__, str(_native_amx.__file__), str(_numba_softmax.__file__), *_numba_loops.FILES)
"""Sources that the kernels are made from, besides _native.py."""


class Layout(NamedTuple):
    """Given to ``lay_out``. Addresses in bytes, strides in elements; channels of k and v are contiguous."""

    k: Headed
    v: Headed
    places: int  # next place in scratch; every thread takes one
    items: int  # B * Hkv * padded / 32, in that order
    keys: int  # S
    padded: int  # S and d in whole blocks of 32
    shared: int  # Hkv
    d: int
    wide: int
    k_across: int  # tiles; 0: not wanted
    k_down: int
    v_across: int
    v_down: int
    scratch: int  # bfloat16 [threads, 32, wide]


_LAID = places(Layout)


@_njit
def _staged(f: Any, tensor: int, batch: int, head: int, begin: int, target: int) -> None:
    """32 rows of keys or values, ``wide`` channels each."""
    wide = f[_LAID.wide]
    for r in range(BLOCK):
        index, count = fields.at(f, tensor, batch, begin + r, head), f[_LAID.d]
        vectors.copy_row(f[tensor], index, target + 2 * r * wide, count if begin + r < f[_LAID.keys] else 0, wide)


@_njit
def _laid_across(f: Any, staged: int, panel: int) -> None:
    """The tiles of 32 keys, pairs of channels."""
    wide = f[_LAID.wide]
    for channel in range(0, wide, BLOCK):
        tile = panel + 2 * channel * BLOCK
        turn_tile(staged + 2 * channel, 2 * wide, tile, LINE)
        turn_tile(staged + 2 * (16 * wide + channel), 2 * wide, tile + TILE, LINE)


@_njit
def pair_rows(rows: int, wide: int, source: int, panels: int, depth: int) -> None:
    """An even number of bfloat16 rows [rows, wide] as panels of 32 channels, ``depth`` bytes each, pairs of rows."""
    for channel in range(0, wide, 16):
        panel = panels + channel // BLOCK * depth + channel % BLOCK // 16 * TILE
        for row in range(0, rows, 2):
            first = source + 2 * (row * wide + channel)
            pair(16, first, first + 2 * wide, panel + row // BLOCK * 2 * TILE + row % BLOCK // 2 * LINE)


@_njit
def _laid_out(f: Any, tensor: int, row: int, begin: int, across: int, down: int, staged: int) -> None:
    """32 keys or values of a row of B * Hkv, from ``begin`` on, into either of its layouts or both."""
    wide, padded = f[_LAID.wide], f[_LAID.padded]
    _staged(f, tensor, row // f[_LAID.shared], row % f[_LAID.shared], begin, staged)
    if across:
        _laid_across(f, staged, across + 2 * (row * padded + begin) * wide)
    if down:
        pair_rows(BLOCK, wide, staged, down + 2 * (row * padded * wide + begin * BLOCK), 2 * BLOCK * padded)


def lay_out(data: Any) -> None:
    """Tiles of keys and values."""
    f = fields_of(data)
    staged = f[_LAID.scratch] + 2 * BLOCK * f[_LAID.wide] * take(data, _LAID.places)
    blocks, item = f[_LAID.padded] // BLOCK, take(data, 0)
    while item < f[_LAID.items]:
        row, begin = item // blocks, item % blocks * BLOCK
        _laid_out(f, _LAID.k, row, begin, f[_LAID.k_across], f[_LAID.k_down], staged)
        _laid_out(f, _LAID.v, row, begin, f[_LAID.v_across], f[_LAID.v_down], staged)
        item = take(data, 0)


sight = _numba_loops.sight_of(BLOCK, BLOCK)


@_njit
def across(data: Any, f: Any, seen: Seen, a: int, step: int, tensor: int, out: int) -> None:
    """Where some query sees some key."""
    pitch, wide = f[AT.pitch], f[AT.wide]
    for column in range(0, seen.width, BLOCK):
        panel = f[tensor] + 2 * (seen.row * f[AT.padded] + seen.begin + column) * wide
        for r in range(0, seen.rows, BLOCK):
            low, high = sight(f, seen, r)
            if low <= column < high:
                to = out + 4 * (r * pitch + column)
                set_product(1, wide // BLOCK, a + 4 * r * step, 4 * step, panel, to, 4 * pitch)


@_njit
def down(data: Any, f: Any, seen: Seen, a: int, tensor: int, alpha: float, beta: float, out: int) -> None:
    """For the keys that some query sees."""
    pitch, wide, padded = f[AT.pitch], f[AT.wide], f[AT.padded]
    for r in range(0, seen.rows, BLOCK):
        low, high = sight(f, seen, r)
        if low < high:
            left, depth = a + 2 * (r * pitch + low), (high - low + BLOCK - 1) // BLOCK
            for column in range(0, wide, BLOCK):
                panel = f[tensor] + 2 * ((seen.row * wide + column) * padded + (seen.begin + low) * BLOCK)
                add_product(1, depth, left, 2 * pitch, panel, out + 4 * (r * wide + column), 4 * wide)


_attend = _numba_loops.forward(across, down, sight, _numba_loops.equal_tiles, _numba_softmax.weigher(BLOCK))


def attend(data: Any) -> None:
    """See _numba_loops.py."""
    _native_amx.configure()
    _attend(data)
    _native_amx.release()
