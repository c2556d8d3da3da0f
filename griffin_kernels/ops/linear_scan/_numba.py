"""The compiled code of the numba variants: linear_scan and its gradient, by rows of channels.

A row is what one time step holds of one block of channels: contiguous, so that it is read, combined with the carry and
written a vector at a time. The carry of a block, in the accumulator's dtype, stays in the first-level cache for a whole
sequence. Rows are written out as LLVM vectors: the loop vectoriser gives up on five streams that might overlap, and
bfloat16 and float16 are widened and rounded in registers.

Kernels are C functions of one pointer, to a block of 64-bit integers (addresses, strides, sizes; see the names below).
Work items are taken from a shared counter in that block, so any number of threads may run the same call at once. The
pointer's element type names the data's dtype: float32, float64, int16 for float16, uint16 for bfloat16.

    forward:   c_t = a_t c_{t-1} + x_t              h_t = c_t
    backward:  g_t = dh_t + c_{t+1}                 dx_t = g_t, da_t = g_t h_{t-1}, c_t = a_t g_t

With time cut into chunks, ``reduce`` finds what each chunk does to its carry, c -> product * c + last; ``carries`` runs
that over the chunks, in order; forward or backward then starts every chunk from its own carry.

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
    "items",  # slots * blocks; a slot is one chunk of one sequence
    "blocks",  # blocks of channels
    "block",  # channels in a block
    "width",  # D
    "time",  # T
    "sequences",  # N
    "chunk",  # steps in a chunk
    "chunks",  # chunks of every sequence, where all are equally long
    "offsets",  # int32 [N+1] of packed sequences, or 0
    "slots",  # int64 [N+1]: slot of each packed sequence's first chunk, or 0
    "backwards",  # 1: this kernel visits time from the last step to the first
    "hints",  # STREAM + AHEAD: how the rows of forward and backward are moved
    "gradient",  # 1: reduce for the gradient
    "initial",  # wide [N, D]: carry that enters a sequence, or 0
    "final",  # wide [N, D]: the running carry of a sequence's last chunk; what leaves the sequence
    "carries",  # wide [slots, D]: carry of every other chunk, or 0 where time is not cut
    "products",  # wide [slots, D], with carries
    "before",  # wide [N, D]: h0, for the gradient, or 0
    "reset",  # bool [B, T], or 0
    "reset_batch",
    "reset_time",
    "a",
    "a_batch",
    "a_time",
    "x",  # x, or dh
    "x_batch",
    "x_time",
    "h",  # read by the gradient
    "h_batch",
    "h_time",
    "out",  # h, or dx; [B, T, D] contiguous
    "da",  # [B, T, D] contiguous
)
"""Names of the integers. Addresses in bytes, strides in elements; data unless said otherwise; wide: accumulator."""

STREAM = 1
"""Hint: write outputs past the caches; their rows and blocks of channels must begin on a cache line."""
AHEAD = 2
"""Hint: ask for the next row of the inputs early."""

_AT = {name: index for index, name in enumerate(FIELDS)}
_ITEMS, _BLOCKS, _BLOCK, _WIDTH, _TIME = (_AT[n] for n in ("items", "blocks", "block", "width", "time"))
_SEQUENCES, _CHUNK, _CHUNKS = _AT["sequences"], _AT["chunk"], _AT["chunks"]
_OFFSETS, _SLOTS, _BACKWARDS = (_AT[n] for n in ("offsets", "slots", "backwards"))
_HINTS, _GRADIENT = _AT["hints"], _AT["gradient"]
_INITIAL, _FINAL, _CARRIES, _PRODUCTS = (_AT[n] for n in ("initial", "final", "carries", "products"))
_BEFORE, _RESET, _RESET_BATCH, _RESET_TIME = (_AT[n] for n in ("before", "reset", "reset_batch", "reset_time"))
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
    """Emits loads, stores and arithmetic on ``count`` neighbouring channels of a row, in the accumulator's dtype."""

    builder: Any
    element: Any
    count: int
    index: Any  # of the first lane, in elements
    hints: int = 0

    @property
    def wide(self) -> Any:
        return ir.DoubleType() if self.element is types.float64 else ir.FloatType()

    def of(self, scalar: Any) -> Any:
        """The type of ``count`` values of a scalar type."""
        return scalar if self.count == 1 else ir.VectorType(scalar, self.count)

    def constant(self, scalar: Any, value: float) -> Any:
        return ir.Constant(self.of(scalar), value if self.count == 1 else [value] * self.count)

    def _at(self, address: Any, scalar: Any) -> Any:
        row = self.builder.inttoptr(address, scalar.as_pointer())
        return self.builder.bitcast(self.builder.gep(row, [self.index]), self.of(scalar).as_pointer())

    def load_wide(self, address: Any) -> Any:
        return self.builder.load(self._at(address, self.wide), align=8 if self.element is types.float64 else 4)

    def store_wide(self, value: Any, address: Any) -> None:
        self.builder.store(value, self._at(address, self.wide), align=8 if self.element is types.float64 else 4)

    def load(self, address: Any) -> Any:
        """Data, widened."""
        memory = _MEMORY[self.element]
        value = self.builder.load(self._at(address, memory), align=_BYTES[self.element])
        if self.element is types.int16:
            return self.builder.fpext(value, self.of(self.wide))
        if self.element is types.uint16:
            # bfloat16 is the upper half of a float32
            bits = self.builder.shl(self.builder.zext(value, self.of(_INT32)), self.constant(_INT32, 16))
            return self.builder.bitcast(bits, self.of(self.wide))
        return value

    def store(self, value: Any, address: Any) -> None:
        """Data, rounded to nearest, ties to even; NaN stays NaN."""
        if self.element is types.int16:
            value = self.builder.fptrunc(value, self.of(ir.HalfType()))
        elif self.element is types.uint16:
            value = self._round_to_bfloat16(value)
        store = self.builder.store(value, self._at(address, _MEMORY[self.element]), align=_BYTES[self.element])
        if self.hints & STREAM and self.count > 1:
            store.align = _CACHE_LINE
            store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(_INT32, 1)]))

    def ahead(self, *addresses: Any) -> None:
        """With the hint, ask for the cache line of data at these channels of other rows; anywhere is safe."""
        if self.hints & AHEAD and self.count > 1:
            byte = ir.IntType(8).as_pointer()
            function = self._function("llvm.prefetch.p0", ir.VoidType(), [byte, _INT32, _INT32, _INT32])
            for address in addresses:
                line = self.builder.bitcast(self._at(address, _MEMORY[self.element]), byte)
                self.builder.call(function, [line, _INT32(0), _INT32(3), _INT32(1)])  # read, keep in L1, data

    def _round_to_bfloat16(self, value: Any) -> Any:
        b = self.builder
        bits = b.bitcast(value, self.of(_INT32))
        upper = b.lshr(bits, self.constant(_INT32, 16))
        odd = b.and_(upper, self.constant(_INT32, 1))
        rounded = b.lshr(b.add(b.add(bits, self.constant(_INT32, 0x7FFF)), odd), self.constant(_INT32, 16))
        # a NaN whose payload is all in the lower half would round to infinity
        quiet = b.or_(upper, self.constant(_INT32, 0x40))
        return b.trunc(b.select(b.fcmp_unordered("uno", value, value), quiet, rounded), self.of(_INT16))

    def multiply_add(self, p: Any, q: Any, r: Any) -> Any:
        """p q + r, fused where the processor can."""
        kind = self.of(self.wide)
        name = f"llvm.fmuladd.{'' if self.count == 1 else f'v{self.count}'}"
        name += "f64" if self.element is types.float64 else "f32"
        function = self._function(name, kind, [kind, kind, kind])
        return self.builder.call(function, [p, q, r])

    def _function(self, name: str, result: Any, arguments: list[Any]) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)

    def multiply(self, p: Any, q: Any) -> Any:
        return self.builder.fmul(p, q)

    def zero(self) -> Any:
        return self.constant(self.wide, 0.0)


def _row(emit: Callable[..., None]) -> Any:
    """A numba function ``(data, channels, addresses)`` that runs ``emit(lanes, *addresses)`` over a row.

    A vector fills a cache line of data; what is left of the row goes one channel at a time.
    """

    @_intrinsic
    def row(typing: Any, data: Any, channels: Any, addresses: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit_row(emit, builder, data.dtype, signature.args[2], args[1], args[2], 0)
            return context.get_dummy_value()

        return types.void(data, channels, addresses), generate

    return row


def _hinted_row(emit: Callable[..., None]) -> Any:
    """As ``_row``, with ``hints`` between data and channels: one copy of the loop for each."""

    @_intrinsic
    def row(typing: Any, data: Any, hints: Any, channels: Any, addresses: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            blocks = [builder.append_basic_block(f"hints.{hint}") for hint in range(4)]
            done = builder.append_basic_block("hints.end")
            switch = builder.switch(args[1], blocks[0])
            for hint, block in enumerate(blocks):
                if hint:
                    switch.add_case(ir.Constant(_INT64, hint), block)
                builder.position_at_end(block)
                _emit_row(emit, builder, data.dtype, signature.args[3], args[2], args[3], hint)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(data, hints, channels, addresses), generate

    return row


def _emit_row(
    emit: Callable[..., None], builder: Any, element: Any, addresses: Any, channels: Any, packed: Any, hints: int
) -> None:
    streams = [builder.extract_value(packed, i) for i in range(len(addresses))]
    vector = _CACHE_LINE // _BYTES[element]
    whole = builder.and_(channels, ir.Constant(_INT64, -vector))

    def body(builder: Any, index: Any, count: int) -> None:
        emit(_Lanes(builder, element, count, index, hints), *streams)

    _loop(builder, ir.Constant(_INT64, 0), whole, vector, body)
    _loop(builder, whole, channels, 1, body)


def _loop(builder: Any, start: Any, end: Any, step: int, body: Callable[[Any, Any, int], None]) -> None:
    """Emit ``for index in range(start, end, step): body(builder, index, step)``."""
    before = builder.block
    loop = builder.append_basic_block("row")
    after = builder.append_basic_block("row.end")
    builder.cbranch(builder.icmp_signed("<", start, end), loop, after)
    builder.position_at_end(loop)
    index = builder.phi(_INT64)
    index.add_incoming(start, before)
    body(builder, index, step)
    following = builder.add(index, ir.Constant(_INT64, step))
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
    builder.position_at_end(after)


@_hinted_row
def _forward_row(v: _Lanes, x: Any, a: Any, out: Any, carry: Any, next_x: Any, next_a: Any) -> None:
    v.ahead(next_x, next_a)
    value = v.multiply_add(v.load(a), v.load_wide(carry), v.load(x))
    v.store_wide(value, carry)
    v.store(value, out)


@_row
def _forward_reduce_row(v: _Lanes, x: Any, a: Any, product: Any, last: Any) -> None:
    gate = v.load(a)
    v.store_wide(v.multiply_add(gate, v.load_wide(last), v.load(x)), last)
    v.store_wide(v.multiply(gate, v.load_wide(product)), product)


def _gradient(v: _Lanes, before: Any, dh: Any, a: Any, dx: Any, da: Any, carry: Any) -> None:
    g = v.builder.fadd(v.load(dh), v.load_wide(carry))
    v.store_wide(v.multiply(v.load(a), g), carry)
    v.store(g, dx)
    v.store(v.multiply(g, before), da)


@_hinted_row
def _backward_row(
    v: _Lanes, dh: Any, a: Any, before: Any, dx: Any, da: Any, carry: Any, next_dh: Any, next_a: Any, next_before: Any
) -> None:
    v.ahead(next_dh, next_a, next_before)
    _gradient(v, v.load(before), dh, a, dx, da, carry)


@_row
def _backward_first_row(v: _Lanes, dh: Any, a: Any, before: Any, dx: Any, da: Any, carry: Any) -> None:
    _gradient(v, v.load_wide(before), dh, a, dx, da, carry)


@_row
def _backward_stop_row(v: _Lanes, dh: Any, dx: Any, da: Any, carry: Any) -> None:
    # no state entered this step: neither a nor an earlier step has a gradient, whatever g is
    v.store(v.builder.fadd(v.load(dh), v.load_wide(carry)), dx)
    v.store(v.zero(), da)
    v.store_wide(v.zero(), carry)


@_row
def _backward_reduce_row(v: _Lanes, dh: Any, a: Any, product: Any, last: Any) -> None:
    gate = v.load(a)
    v.store_wide(v.multiply(gate, v.builder.fadd(v.load(dh), v.load_wide(last))), last)
    v.store_wide(v.multiply(gate, v.load_wide(product)), product)


@_row
def _carry_row(v: _Lanes, product: Any, last: Any, carry: Any) -> None:
    # last: what the chunk makes of a zero carry, replaced by the carry that enters it
    entering = v.load_wide(carry)
    v.store_wide(v.multiply_add(v.load_wide(product), entering, v.load_wide(last)), carry)
    v.store_wide(entering, last)


@_row
def _zero_row(v: _Lanes, target: Any) -> None:
    v.store_wide(v.zero(), target)


@_row
def _one_row(v: _Lanes, target: Any) -> None:
    v.store_wide(v.constant(v.wide, 1.0), target)


@_row
def _copy_row(v: _Lanes, source: Any, target: Any) -> None:
    v.store_wide(v.load_wide(source), target)


def _integer_at(kind: Any) -> Any:
    """A numba function ``(address, index) -> int64`` that reads an array of ``kind``."""

    @_intrinsic
    def read(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = builder.inttoptr(args[0], kind.as_pointer())
            value = builder.load(builder.gep(array, [args[1]]))
            return value if kind is _INT64 else builder.sext(value, _INT64)

        return types.int64(types.int64, types.int64), generate

    return read


_int8_at, _int32_at, _int64_at = _integer_at(ir.IntType(8)), _integer_at(_INT32), _integer_at(_INT64)


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
        counter = builder.bitcast(args[0], _INT64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(_INT64, 1), "monotonic")

    return types.int64(data), generate


@_intrinsic
def _finish(typing: Any, data: Any) -> Any:
    """Make streamed rows visible to other threads before this one says that it is done."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(data), generate


@_intrinsic
def _data_bytes(typing: Any, data: Any) -> Any:
    """Bytes of one data element."""
    size = _BYTES[data.dtype]
    return types.int64(data), lambda context, builder, signature, args: ir.Constant(_INT64, size)


@_intrinsic
def _wide_bytes(typing: Any, data: Any) -> Any:
    """Bytes of one element of the accumulator."""
    size = 8 if data.dtype is types.float64 else 4
    return types.int64(data), lambda context, builder, signature, args: ir.Constant(_INT64, size)


@_njit(error_model="numpy")
def _locate(data: Any, slot: int) -> tuple[int, int, int]:
    """(sequence, which of its chunks, how many it has) of a slot."""
    table = _field(data, _SLOTS)
    if table == 0:
        chunks = _field(data, _CHUNKS)
        return slot // chunks, slot % chunks, chunks
    low, high = 0, _field(data, _SEQUENCES)
    while high - low > 1:
        middle = (low + high) // 2
        if _int64_at(table, middle) <= slot:
            low = middle
        else:
            high = middle
    first = _int64_at(table, low)
    return low, slot - first, _int64_at(table, low + 1) - first


@_njit
def _bounds(data: Any, sequence: int) -> tuple[int, int, int]:
    """(batch row, first time, end time) of a sequence."""
    offsets = _field(data, _OFFSETS)
    if offsets == 0:
        return sequence, 0, _field(data, _TIME)
    return 0, _int32_at(offsets, sequence), _int32_at(offsets, sequence + 1)


@_njit
def _input(data: Any, name: int, batch: int, channel: int) -> tuple[int, int]:
    """(address, bytes per step) of an input in one batch row, from ``channel`` on."""
    size = _data_bytes(data)
    start = _field(data, name) + (batch * _field(data, name + 1) + channel) * size
    return start, _field(data, name + 2) * size


@_njit
def _output(data: Any, name: int, batch: int, channel: int) -> int:
    """Address of an output [B, T, D] in one batch row, from ``channel`` on."""
    width = _field(data, _WIDTH)
    return _field(data, name) + (batch * _field(data, _TIME) * width + channel) * _data_bytes(data)


@_njit
def _wide(data: Any, name: int, row: int, channel: int) -> int:
    """Address of a row of a wide [rows, D] array, from ``channel`` on."""
    return _field(data, name) + (row * _field(data, _WIDTH) + channel) * _wide_bytes(data)


@_njit
def _start(data: Any, sequence: int, channel: int, channels: int, carry: int) -> None:
    """Set the carry that enters a sequence."""
    if _field(data, _INITIAL) == 0:
        _zero_row(data, channels, (carry,))
    else:
        _copy_row(data, channels, (_wide(data, _INITIAL, sequence, channel), carry))


@_njit
def _carry(data: Any, slot: int, sequence: int, last: bool, channel: int, channels: int) -> int:
    """Address of the running carry of a slot, which holds what enters the slot."""
    if _field(data, _CARRIES) == 0:
        carry = _wide(data, _FINAL, sequence, channel)
        _start(data, sequence, channel, channels, carry)
        return carry
    if last:
        return _wide(data, _FINAL, sequence, channel)
    return _wide(data, _CARRIES, slot, channel)


@_njit
def _is_reset(data: Any, batch: int, t: int) -> bool:
    reset = _field(data, _RESET)
    return reset != 0 and _int8_at(reset, batch * _field(data, _RESET_BATCH) + t * _field(data, _RESET_TIME)) != 0


def forward(data: Any) -> None:
    """h and the running carries."""
    blocks, block, width = _field(data, _BLOCKS), _field(data, _BLOCK), _field(data, _WIDTH)
    chunk, backwards, hints = _field(data, _CHUNK), _field(data, _BACKWARDS), _field(data, _HINTS)
    out_step = width * _data_bytes(data)
    item = _take(data)
    while item < _field(data, _ITEMS):
        slot, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        sequence, part, parts = _locate(data, slot)
        batch, begin, end = _bounds(data, sequence)
        carry = _carry(data, slot, sequence, part == parts - 1, channel, channels)
        x, x_step = _input(data, _X, batch, channel)
        a, a_step = _input(data, _A, batch, channel)
        out = _output(data, _OUT, batch, channel)
        for k in range(part * chunk, min((part + 1) * chunk, end - begin)):
            t = end - 1 - k if backwards else begin + k
            later = t - 1 if backwards else t + 1
            if _is_reset(data, batch, t):
                _zero_row(data, channels, (carry,))
            rows = (x + t * x_step, a + t * a_step, out + t * out_step, carry, x + later * x_step, a + later * a_step)
            _forward_row(data, hints, channels, rows)
        item = _take(data)
    _finish(data)


def backward(data: Any) -> None:
    """dx, da and the running carries."""
    blocks, block, width = _field(data, _BLOCKS), _field(data, _BLOCK), _field(data, _WIDTH)
    chunk, backwards, hints = _field(data, _CHUNK), _field(data, _BACKWARDS), _field(data, _HINTS)
    out_step = width * _data_bytes(data)
    item = _take(data)
    while item < _field(data, _ITEMS):
        slot, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        sequence, part, parts = _locate(data, slot)
        batch, begin, end = _bounds(data, sequence)
        carry = _carry(data, slot, sequence, part == parts - 1, channel, channels)
        dh, dh_step = _input(data, _X, batch, channel)
        a, a_step = _input(data, _A, batch, channel)
        h, h_step = _input(data, _H, batch, channel)
        dx, da = _output(data, _OUT, batch, channel), _output(data, _DA, batch, channel)
        for k in range(part * chunk, min((part + 1) * chunk, end - begin)):
            t = end - 1 - k if backwards else begin + k
            later = t - 1 if backwards else t + 1
            dh_row, a_row, dx_row, da_row = dh + t * dh_step, a + t * a_step, dx + t * out_step, da + t * out_step
            first = k == end - begin - 1  # in the order of the forward pass
            if _is_reset(data, batch, t) or (first and _field(data, _BEFORE) == 0):
                _backward_stop_row(data, channels, (dh_row, dx_row, da_row, carry))
            elif first:
                before = _wide(data, _BEFORE, sequence, channel)
                _backward_first_row(data, channels, (dh_row, a_row, before, dx_row, da_row, carry))
            else:
                before, step = h + later * h_step, later - t
                ahead = (dh_row + step * dh_step, a_row + step * a_step, before + step * h_step)
                _backward_row(data, hints, channels, (dh_row, a_row, before, dx_row, da_row, carry, *ahead))
        item = _take(data)
    _finish(data)


def reduce(data: Any) -> None:
    """products and carries: what each chunk but a sequence's last does to the carry that enters it."""
    blocks, block, width = _field(data, _BLOCKS), _field(data, _BLOCK), _field(data, _WIDTH)
    chunk, backwards, gradient = _field(data, _CHUNK), _field(data, _BACKWARDS), _field(data, _GRADIENT)
    item = _take(data)
    while item < _field(data, _ITEMS):
        slot, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        sequence, part, parts = _locate(data, slot)
        if part < parts - 1:
            batch, begin, end = _bounds(data, sequence)
            product, last = _wide(data, _PRODUCTS, slot, channel), _wide(data, _CARRIES, slot, channel)
            _one_row(data, channels, (product,))
            _zero_row(data, channels, (last,))
            x, x_step = _input(data, _X, batch, channel)
            a, a_step = _input(data, _A, batch, channel)
            for k in range(part * chunk, (part + 1) * chunk):
                t = end - 1 - k if backwards else begin + k
                reset = _is_reset(data, batch, t)
                if reset:
                    _zero_row(data, channels, (product,))
                    _zero_row(data, channels, (last,))
                if not gradient:
                    _forward_reduce_row(data, channels, (x + t * x_step, a + t * a_step, product, last))
                elif not reset:
                    _backward_reduce_row(data, channels, (x + t * x_step, a + t * a_step, product, last))
        item = _take(data)


def carries(data: Any) -> None:
    """The carry that enters every chunk, from ``reduce``; one item per sequence and block."""
    blocks, block, width = _field(data, _BLOCKS), _field(data, _BLOCK), _field(data, _WIDTH)
    table, chunks = _field(data, _SLOTS), _field(data, _CHUNKS)
    item = _take(data)
    while item < _field(data, _SEQUENCES) * blocks:
        sequence, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        carry = _wide(data, _FINAL, sequence, channel)
        _start(data, sequence, channel, channels, carry)
        start = sequence * chunks if table == 0 else _int64_at(table, sequence)
        end = start + chunks if table == 0 else _int64_at(table, sequence + 1)
        for slot in range(start, end - 1):
            product, last = _wide(data, _PRODUCTS, slot, channel), _wide(data, _CARRIES, slot, channel)
            _carry_row(data, channels, (product, last, carry))
        item = _take(data)


_KERNELS: list[Any] = []
"""Compiled kernels, kept alive as long as their addresses may be called."""


@functools.cache
def compiled(kernel: Callable[[Any], None], dtype: torch.dtype) -> Any:
    """A kernel for data of ``dtype`` as a ctypes function of the address of its FIELDS.

    Compiled on first use and kept on disk: beside this file, in the user's cache folder, or in NUMBA_CACHE_DIR.
    """
    signature = types.void(types.CPointer(_ELEMENTS[dtype]))
    try:
        function = _cfunc(signature, cache=True, nopython=True, error_model="numpy")(kernel)
    except RuntimeError as error:
        # numba's word for "none of these folders can be written": compile again in every process
        if "cannot cache function" not in str(error):
            raise
        function = _cfunc(signature, nopython=True, error_model="numpy")(kernel)
    _KERNELS.append(function)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address)
