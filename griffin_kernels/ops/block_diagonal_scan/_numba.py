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

Kernels are C functions of one pointer, to a block of 64-bit integers (addresses, strides, sizes; see the names below).
Work items are taken from a shared counter in that block, so any number of threads may run the same call at once. The
pointer's type names the data's dtype and n: a tuple of n of float32, float64, int16 for float16, or uint16 for
bfloat16.

All of it is one file because numba's cache on disk watches only the file of the function that it compiles.
"""

# Python's types end where numba's begin.
# mypy: disable-error-code="no-any-return, untyped-decorator, no-untyped-call"

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import extending, types

# numba has types for some of these, which know nothing of compiled code
_intrinsic: Any = extending.intrinsic
_njit: Any = numba.njit
_cfunc: Any = numba.cfunc

FIELDS = (
    "counter",  # next work item; the kernels advance it
    "items",  # sequences * groups
    "groups",  # of channels
    "group",  # channels in a group, a multiple of n
    "width",  # D
    "time",  # T
    "offsets",  # int32 [N+1] of packed sequences, or 0
    "backwards",  # 1: this kernel visits time from the last step to the first
    "stream",  # 1: write outputs past the caches; every vector of them must be aligned
    "initial",  # wide [N, D]: state that enters a sequence, or 0
    "final",  # wide [N, D]: the running state; what leaves the sequence
    "before",  # wide [N, D]: h0, for the gradient, or 0
    "reset",  # bool [B, T], or 0
    "reset_batch",
    "reset_time",
    "a",  # [B, T, D * n], contiguous within a step
    "a_batch",
    "a_time",
    "x",  # x, or dh
    "x_batch",
    "x_time",
    "h",  # read by the gradient
    "h_batch",
    "h_time",
    "out",  # h, or dx; [B, T, D] contiguous
    "da",  # [B, T, D * n] contiguous
)
"""Names of the integers. Addresses in bytes, strides in elements; data unless said otherwise; wide: accumulator."""

_AT = {name: index for index, name in enumerate(FIELDS)}
_ITEMS, _GROUPS, _GROUP, _WIDTH, _TIME = (_AT[n] for n in ("items", "groups", "group", "width", "time"))
_OFFSETS, _BACKWARDS, _STREAM = (_AT[n] for n in ("offsets", "backwards", "stream"))
_INITIAL, _FINAL, _BEFORE = (_AT[n] for n in ("initial", "final", "before"))
_RESET, _RESET_BATCH, _RESET_TIME = (_AT[n] for n in ("reset", "reset_batch", "reset_time"))
_X, _A, _H, _OUT, _DA = (_AT[n] for n in ("x", "a", "h", "out", "da"))

_ELEMENTS = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.float16: types.int16,
    torch.bfloat16: types.uint16,
}
_MEMORY = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int16: ir.HalfType(),
    types.uint16: ir.IntType(16),
}
_BYTES = {types.float32: 4, types.float64: 8, types.int16: 2, types.uint16: 2}
_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_CACHE_LINE = 64


@dataclass(frozen=True)
class _Lanes:
    """Emits work on ``count`` neighbouring channels, whole blocks of ``size``, in the accumulator's dtype."""

    builder: Any
    element: Any
    size: int  # n
    count: int  # V
    channel: Any  # of the first lane
    stream: bool

    @property
    def wide(self) -> Any:
        return ir.DoubleType() if self.element is types.float64 else ir.FloatType()

    def of(self, scalar: Any) -> Any:
        return ir.VectorType(scalar, self.count)

    def constant(self, scalar: Any, value: float) -> Any:
        return ir.Constant(self.of(scalar), [value] * self.count)

    def zero(self) -> Any:
        return self.constant(self.wide, 0.0)

    def _at(self, address: Any, scalar: Any, index: Any) -> Any:
        row = self.builder.inttoptr(address, scalar.as_pointer())
        return self.builder.bitcast(self.builder.gep(row, [index]), self.of(scalar).as_pointer())

    def load_wide(self, address: Any) -> Any:
        pointer = self._at(address, self.wide, self.channel)
        return self.builder.load(pointer, align=8 if self.element is types.float64 else 4)

    def store_wide(self, value: Any, address: Any) -> None:
        pointer = self._at(address, self.wide, self.channel)
        self.builder.store(value, pointer, align=8 if self.element is types.float64 else 4)

    def _matrices(self, part: int) -> Any:
        """Where vector ``part`` of the n vectors of matrices begins, in elements."""
        first = self.builder.mul(self.channel, _INT64(self.size))
        return self.builder.add(first, _INT64(part * self.count))

    def load(self, address: Any, part: int | None = None) -> Any:
        """Data of these channels, or one of the n vectors of their matrices; widened."""
        memory = _MEMORY[self.element]
        index = self.channel if part is None else self._matrices(part)
        value = self.builder.load(self._at(address, memory, index), align=_BYTES[self.element])
        if self.element is types.int16:
            return self.builder.fpext(value, self.of(self.wide))
        if self.element is types.uint16:
            # bfloat16 is the upper half of a float32
            bits = self.builder.shl(self.builder.zext(value, self.of(_INT32)), self.constant(_INT32, 16))
            return self.builder.bitcast(bits, self.of(self.wide))
        return value

    def store(self, value: Any, address: Any, part: int | None = None) -> None:
        """As load; rounded to nearest, ties to even; NaN stays NaN."""
        if self.element is types.int16:
            value = self.builder.fptrunc(value, self.of(ir.HalfType()))
        elif self.element is types.uint16:
            value = self._round_to_bfloat16(value)
        index = self.channel if part is None else self._matrices(part)
        size = _BYTES[self.element]
        store = self.builder.store(value, self._at(address, _MEMORY[self.element], index), align=size)
        if self.stream:
            store.align = min(_CACHE_LINE, self.count * size)
            store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(_INT32, 1)]))

    def _round_to_bfloat16(self, value: Any) -> Any:
        b = self.builder
        bits = b.bitcast(value, self.of(_INT32))
        upper = b.lshr(bits, self.constant(_INT32, 16))
        odd = b.and_(upper, self.constant(_INT32, 1))
        rounded = b.lshr(b.add(b.add(bits, self.constant(_INT32, 0x7FFF)), odd), self.constant(_INT32, 16))
        # a NaN whose payload is all in the lower half would round to infinity
        quiet = b.or_(upper, self.constant(_INT32, 0x40))
        return b.trunc(b.select(b.fcmp_unordered("uno", value, value), quiet, rounded), self.of(_INT16))

    def _shuffled(self, first: Any, second: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes))

    def _placed(self, value: Any, part: int, lane: Callable[[int], int]) -> Any:
        elements = range(part * self.count, (part + 1) * self.count)
        return self._shuffled(value, value, [lane(f) for f in elements])

    def spread(self, value: Any, part: int) -> Any:
        """For each element of vector ``part`` of the matrices: the value of its column's channel."""
        return self._placed(value, part, lambda f: f // self.size**2 * self.size + f % self.size)

    def repeat(self, value: Any, part: int) -> Any:
        """For each element of vector ``part`` of the matrices: the value of its row's channel."""
        return self._placed(value, part, lambda f: f // self.size)

    def _fold(self, vectors: list[Any], unit: int) -> Any:
        """n vectors, seen as pieces of ``unit`` lanes: the sums of every n neighbouring pieces, one vector."""
        if unit == self.count:
            while len(vectors) > 1:
                pairs = [self.builder.fadd(*vectors[i : i + 2]) for i in range(0, len(vectors) - 1, 2)]
                vectors = pairs + vectors[2 * len(pairs) :]
            return vectors[0]
        even = [2 * piece * unit + lane for piece in range(self.count // unit) for lane in range(unit)]
        odd = [lane + unit for lane in even]
        while len(vectors) > 1:
            couples = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
            vectors = [self.builder.fadd(self._shuffled(u, v, even), self._shuffled(u, v, odd)) for u, v in couples]
        return vectors[0]

    def sum_columns(self, vectors: list[Any]) -> Any:
        """Element [j, k] of every block summed over j, for channel k."""
        return self._fold(vectors, self.size)

    def sum_rows(self, vectors: list[Any]) -> Any:
        """Element [j, k] of every block summed over k, for channel j."""
        if self.size & (self.size - 1) == 0:
            return self._fold(vectors, 1)
        total = self.zero()
        for row, vector in enumerate(vectors):
            entries = [self.builder.extract_element(vector, _INT32(k)) for k in range(self.size)]
            total = self.builder.insert_element(total, functools.reduce(self.builder.fadd, entries), _INT32(row))
        return total


def _row(emit: Callable[..., None]) -> Any:
    """A numba function ``(data, stream, channels, addresses)`` that runs ``emit(lanes, *addresses)`` over a row.

    A vector has 16 channels, 8 of float64; what is left of the row goes one block at a time.
    """

    @_intrinsic
    def row(typing: Any, data: Any, stream: Any, channels: Any, addresses: Any) -> Any:
        element, size = data.dtype.dtype, data.dtype.count
        regular = size & (size - 1) == 0
        vector = max(size, 8 if element is types.float64 else 16) if regular else size

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, stream, channels, packed = args
            unpacked = [builder.extract_value(packed, i) for i in range(len(addresses))]
            whole = builder.mul(builder.sdiv(channels, _INT64(vector)), _INT64(vector))

            def part(start: Any, end: Any, count: int, past: bool) -> None:
                def body(channel: Any) -> None:
                    emit(_Lanes(builder, element, size, count, channel, past), *unpacked)

                _loop(builder, start, end, count, body)

            with builder.if_else(builder.icmp_signed("!=", stream, _INT64(0))) as (streamed, kept):
                with streamed:
                    part(_INT64(0), whole, vector, regular)
                with kept:
                    part(_INT64(0), whole, vector, False)
            if vector != size:
                part(whole, channels, size, False)
            return context.get_dummy_value()

        return types.void(data, stream, channels, addresses), generate

    return row


def _loop(builder: Any, start: Any, end: Any, step: int, body: Callable[[Any], None]) -> None:
    """Emit ``for index in range(start, end, step): body(index)``."""
    before, loop, after = builder.block, builder.append_basic_block("row"), builder.append_basic_block("row.end")
    builder.cbranch(builder.icmp_signed("<", start, end), loop, after)
    builder.position_at_end(loop)
    index = builder.phi(_INT64)
    index.add_incoming(start, before)
    body(index)
    following = builder.add(index, _INT64(step))
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
    builder.position_at_end(after)


@_row
def _forward_row(v: _Lanes, x: Any, a: Any, out: Any, carry: Any) -> None:
    state = v.load_wide(carry)
    products = [v.builder.fmul(v.load(a, i), v.spread(state, i)) for i in range(v.size)]
    value = v.builder.fadd(v.sum_rows(products), v.load(x))
    v.store_wide(value, carry)
    v.store(value, out)


def _gradient(v: _Lanes, before: Any, dh: Any, a: Any, dx: Any, da: Any, carry: Any) -> None:
    g = v.builder.fadd(v.load(dh), v.load_wide(carry))
    v.store(g, dx)
    products = []
    for i in range(v.size):
        repeated = v.repeat(g, i)
        products.append(v.builder.fmul(v.load(a, i), repeated))
        v.store(v.builder.fmul(repeated, v.spread(before, i)), da, i)
    v.store_wide(v.sum_columns(products), carry)


@_row
def _backward_row(v: _Lanes, dh: Any, a: Any, before: Any, dx: Any, da: Any, carry: Any) -> None:
    _gradient(v, v.load(before), dh, a, dx, da, carry)


@_row
def _backward_first_row(v: _Lanes, dh: Any, a: Any, before: Any, dx: Any, da: Any, carry: Any) -> None:
    _gradient(v, v.load_wide(before), dh, a, dx, da, carry)


@_row
def _backward_stop_row(v: _Lanes, dh: Any, dx: Any, da: Any, carry: Any) -> None:
    # no state entered this step: neither a nor an earlier step has a gradient, whatever g is
    v.store(v.builder.fadd(v.load(dh), v.load_wide(carry)), dx)
    for i in range(v.size):
        v.store(v.zero(), da, i)
    v.store_wide(v.zero(), carry)


@_row
def _zero_row(v: _Lanes, target: Any) -> None:
    v.store_wide(v.zero(), target)


@_row
def _copy_row(v: _Lanes, source: Any, target: Any) -> None:
    v.store_wide(v.load_wide(source), target)


def _integer_at(kind: Any) -> Any:
    """A numba function ``(address, index) -> int64`` that reads an array of ``kind``."""

    @_intrinsic
    def read(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(builder.gep(builder.inttoptr(args[0], kind.as_pointer()), [args[1]]))
            return builder.sext(value, _INT64)

        return types.int64(types.int64, types.int64), generate

    return read


_int8_at, _int32_at = _integer_at(ir.IntType(8)), _integer_at(_INT32)


@_intrinsic
def _field(typing: Any, data: Any, index: Any) -> Any:
    """One of the FIELDS."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(builder.bitcast(args[0], _INT64.as_pointer()), [args[1]]))

    return types.int64(data, types.int64), generate


@_intrinsic
def _take(typing: Any, data: Any) -> Any:
    """The next work item, which no other thread gets."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.bitcast(args[0], _INT64.as_pointer()), _INT64(1), "monotonic")

    return types.int64(data), generate


@_intrinsic
def _finish(typing: Any, data: Any) -> Any:
    """Make streamed rows visible to other threads before this one says that it is done."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(data), generate


def _known(value: Callable[[Any], int]) -> Any:
    """A numba function ``(data) -> int64`` of what the pointer's type says."""

    @_intrinsic
    def known(typing: Any, data: Any) -> Any:
        number = value(data.dtype)
        return types.int64(data), lambda context, builder, signature, args: _INT64(number)

    return known


_size = _known(lambda kind: kind.count)
_data_bytes = _known(lambda kind: _BYTES[kind.dtype])
_wide_bytes = _known(lambda kind: 8 if kind.dtype is types.float64 else 4)


@_njit
def _bounds(data: Any, sequence: int) -> tuple[int, int, int]:
    """(batch row, first time, end time) of a sequence."""
    offsets = _field(data, _OFFSETS)
    if offsets == 0:
        return sequence, 0, _field(data, _TIME)
    return 0, _int32_at(offsets, sequence), _int32_at(offsets, sequence + 1)


@_njit
def _input(data: Any, name: int, batch: int, element: int) -> tuple[int, int]:
    """(address, bytes per step) of an input in one batch row, from ``element`` of a step on."""
    size = _data_bytes(data)
    return _field(data, name) + (batch * _field(data, name + 1) + element) * size, _field(data, name + 2) * size


@_njit
def _output(data: Any, name: int, batch: int, step: int, element: int) -> tuple[int, int]:
    """(address, bytes per step) of an output of ``step`` elements per step, from ``element`` of a step on."""
    size = _data_bytes(data)
    return _field(data, name) + (batch * _field(data, _TIME) * step + element) * size, step * size


@_njit
def _wide(data: Any, name: int, row: int, channel: int) -> int:
    """Address of a row of a wide [rows, D] array, from ``channel`` on."""
    return _field(data, name) + (row * _field(data, _WIDTH) + channel) * _wide_bytes(data)


@_njit
def _entered(data: Any, sequence: int, channel: int, channels: int) -> int:
    """Address of a group's running state, set to what enters its sequence."""
    carry = _wide(data, _FINAL, sequence, channel)
    if _field(data, _INITIAL) == 0:
        _zero_row(data, 0, channels, (carry,))
    else:
        _copy_row(data, 0, channels, (_wide(data, _INITIAL, sequence, channel), carry))
    return carry


@_njit
def _is_reset(data: Any, batch: int, t: int) -> bool:
    reset = _field(data, _RESET)
    return reset != 0 and _int8_at(reset, batch * _field(data, _RESET_BATCH) + t * _field(data, _RESET_TIME)) != 0


def forward(data: Any) -> None:
    """h and the running states."""
    groups, group, width, size = _field(data, _GROUPS), _field(data, _GROUP), _field(data, _WIDTH), _size(data)
    backwards, stream = _field(data, _BACKWARDS), _field(data, _STREAM)
    item = _take(data)
    while item < _field(data, _ITEMS):
        sequence, channel = item // groups, item % groups * group
        channels = min(group, width - channel)
        batch, begin, end = _bounds(data, sequence)
        carry = _entered(data, sequence, channel, channels)
        x, x_step = _input(data, _X, batch, channel)
        a, a_step = _input(data, _A, batch, channel * size)
        out, out_step = _output(data, _OUT, batch, width, channel)
        for k in range(end - begin):
            t = end - 1 - k if backwards else begin + k
            if _is_reset(data, batch, t):
                _zero_row(data, 0, channels, (carry,))
            _forward_row(data, stream, channels, (x + t * x_step, a + t * a_step, out + t * out_step, carry))
        item = _take(data)
    _finish(data)


def backward(data: Any) -> None:
    """dx, da and the running gradients."""
    groups, group, width, size = _field(data, _GROUPS), _field(data, _GROUP), _field(data, _WIDTH), _size(data)
    backwards, stream = _field(data, _BACKWARDS), _field(data, _STREAM)
    item = _take(data)
    while item < _field(data, _ITEMS):
        sequence, channel = item // groups, item % groups * group
        channels = min(group, width - channel)
        batch, begin, end = _bounds(data, sequence)
        carry = _entered(data, sequence, channel, channels)
        dh, dh_step = _input(data, _X, batch, channel)
        a, a_step = _input(data, _A, batch, channel * size)
        h, h_step = _input(data, _H, batch, channel)
        dx, dx_step = _output(data, _OUT, batch, width, channel)
        da, da_step = _output(data, _DA, batch, width * size, channel * size)
        for k in range(end - begin):
            t = end - 1 - k if backwards else begin + k
            later = t - 1 if backwards else t + 1  # the step before, in the order of the forward pass
            dh_row, a_row, dx_row, da_row = dh + t * dh_step, a + t * a_step, dx + t * dx_step, da + t * da_step
            first = k == end - begin - 1
            if _is_reset(data, batch, t) or (first and _field(data, _BEFORE) == 0):
                _backward_stop_row(data, stream, channels, (dh_row, dx_row, da_row, carry))
            elif first:
                before = _wide(data, _BEFORE, sequence, channel)
                _backward_first_row(data, stream, channels, (dh_row, a_row, before, dx_row, da_row, carry))
            else:
                rows = (dh_row, a_row, h + later * h_step, dx_row, da_row, carry)
                _backward_row(data, stream, channels, rows)
        item = _take(data)
    _finish(data)


_KERNELS: list[Any] = []
"""Compiled kernels, kept alive as long as their addresses may be called."""


@functools.cache
def compiled(kernel: Callable[[Any], None], dtype: torch.dtype, size: int) -> Any:
    """A kernel for data of ``dtype`` and blocks of ``size`` as a ctypes function of the address of its FIELDS.

    Compiled on first use and kept on disk: beside this file, in the user's cache folder, or in NUMBA_CACHE_DIR.
    """
    signature = types.void(types.CPointer(types.UniTuple(_ELEMENTS[dtype], size)))
    try:
        function = _cfunc(signature, cache=True, nopython=True, error_model="numpy")(kernel)
    except RuntimeError as error:
        # numba's word for "none of these folders can be written": compile again in every process
        if "cannot cache function" not in str(error):
            raise
        function = _cfunc(signature, nopython=True, error_model="numpy")(kernel)
    _KERNELS.append(function)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address)
