"""The compiled code of the numba.blocked variants of local_attention and its gradient: products by torch's BLAS.

A block's scores, for a tile of keys at a time, are a product of torch's BLAS, called here by one thread for itself.
Keys and values are float32. See _numba_loops.py.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils

from griffin_kernels.ops._native import FLOAT, INT8, INT32, INT64, intrinsic
from griffin_kernels.ops.local_attention import _numba_loops
from griffin_kernels.ops.local_attention._numba_fields import AT, at, fields_of
from griffin_kernels.ops.local_attention._numba_loops import Seen

_njit: Any = numba.njit
_f32: Any = numba.float32

FILES = (__file__, *_numba_loops.FILES)
"""Sources that the kernels are made from, besides _native.py."""


AS_THEY_LIE, B_TRANSPOSED, A_TRANSPOSED = 0, 1, 2
"""Layouts of a product's factors: b [columns, inner] or a [inner, rows] in memory is used transposed."""


class Matrix(NamedTuple):
    """float32 rows: the address of the first, and elements from one to the next."""

    at: int
    step: int


@intrinsic
def _multiply(typing: Any, sgemm: Any, layout: Any, sizes: Any, alpha: Any, a: Any, b: Any, beta: Any, out: Any) -> Any:
    """out [rows, columns] = beta out + alpha a [rows, inner] @ b [inner, columns]. sizes: rows, columns, inner.

    By Fortran's SGEMM at an address, all of whose arguments are pointers. Its matrices are ours transposed, and so is
    their product.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(value: Any) -> Any:
            slot = cgutils.alloca_once(builder, value.type)
            builder.store(value, slot)
            return slot

        def letter(layout: int) -> Any:
            is_set = builder.icmp_signed("==", args[1], INT64(layout))
            return pointer(builder.select(is_set, ir.Constant(INT8, ord("T")), ir.Constant(INT8, ord("N"))))

        def matrix(packed: Any) -> Any:
            at, step = cgutils.unpack_tuple(builder, packed, 2)
            return builder.inttoptr(at, FLOAT.as_pointer()), pointer(builder.trunc(step, INT32))

        rows, columns, inner = (pointer(builder.trunc(n, INT32)) for n in cgutils.unpack_tuple(builder, args[2], 3))
        values = [letter(B_TRANSPOSED), letter(A_TRANSPOSED), columns, rows, inner, pointer(args[3])]
        values += [*matrix(args[5]), *matrix(args[4]), pointer(args[6]), *matrix(args[7])]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    i, f = types.int64, types.float32
    return types.void(i, i, types.UniTuple(i, 3), f, a, b, f, out), generate


@intrinsic
def _call_set_threads(typing: Any, function: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(INT32, [INT32])
        before = builder.call(builder.inttoptr(args[0], kind.as_pointer()), [builder.trunc(args[1], INT32)])
        return builder.sext(before, INT64)

    return types.int64(types.int64, types.int64), generate


@_njit
def _set_threads(f: Any, count: int) -> int:
    """Have BLAS use ``count`` threads for each of this thread's products; how many it used before."""
    return _call_set_threads(f[AT.set_threads], count) if f[AT.set_threads] else 0


@_njit
def _rows_from(f: Any, tensor: int, seen: Seen) -> Matrix:
    """A tile's keys or values."""
    row, shared = seen.row, f[AT.shared]
    return Matrix(f[tensor] + 4 * at(f, tensor, row // shared, seen.begin, row % shared), f[tensor + 2])


@_njit
def _across(data: Any, f: Any, seen: Seen, a: int, step: int, tensor: int, out: int) -> None:
    right, sizes = _rows_from(f, tensor, seen), (seen.rows, seen.width, f[AT.d])
    _multiply(f[AT.sgemm], B_TRANSPOSED, sizes, _f32(1), Matrix(a, step), right, _f32(0), Matrix(out, f[AT.pitch]))


@_njit
def _down(data: Any, f: Any, seen: Seen, a: int, tensor: int, alpha: float, beta: float, out: int) -> None:
    left, right, sizes = Matrix(a, f[AT.pitch]), _rows_from(f, tensor, seen), (seen.rows, f[AT.d], seen.width)
    _multiply(f[AT.sgemm], AS_THEY_LIE, sizes, alpha, left, right, beta, Matrix(out, f[AT.d]))


@_njit
def _transposed(f: Any, seen: Seen, a: int, b: int, step: int, alpha: float, out: int) -> None:
    left, right, sizes = Matrix(a, f[AT.pitch]), Matrix(b, step), (seen.width, f[AT.d], seen.rows)
    _multiply(f[AT.sgemm], A_TRANSPOSED, sizes, alpha, left, right, _f32(1), Matrix(out, f[AT.d]))


@_njit
def _sight(f: Any, seen: Seen, row: int) -> tuple[int, int]:
    return 0, seen.width


_attend = _numba_loops.forward(_across, _down, _sight, _numba_loops.equal_tiles)
_gradient = _numba_loops.backward(_across, _down, _transposed, _sight, _numba_loops.equal_tiles)


def attend(data: Any) -> None:
    """See _numba_loops.py."""
    f = fields_of(data)
    before = _set_threads(f, 1)
    _attend(data)
    _set_threads(f, before)


def gradient(data: Any) -> None:
    """See _numba_loops.py."""
    f = fields_of(data)
    before = _set_threads(f, 1)
    _gradient(data)
    _set_threads(f, before)
