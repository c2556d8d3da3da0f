"""The compiled code of numba.direct: temporal_conv1d and its gradient, in tiles of steps by blocks of channels.

Within a tile, a vector of channels (a cache line of data) goes down the steps: taps, and the earlier inputs (forward)
or later gradients (backward) that they multiply, stay in registers, so that each element is loaded, widened and stored
once. The number of taps is known when a kernel is compiled. Steps near a boundary, where some taps do not count or read
the state, are tiles of one step.

Kernels are C functions of one pointer, to a block of 64-bit integers (addresses, strides, sizes; see the names below).
Work items are taken from a shared counter in that block, so any number of threads may run the same call at once. The
pointer's type names the data's dtype and the taps: a tuple of K of float32, float64, int16 for float16, or uint16 for
bfloat16.

    forward:   y_t = bias + sum_k w_k x_{t-k}
    backward:  dx_s = sum_k w_k dy_{s+k},  dw_k += dy_{s+k} x_s,  dbias += dy_s            w_k: weight[K-1-k]

All of it is one file because numba's cache on disk watches only the file of the function that it compiles.
"""

# Python's types end where numba's begin.
# mypy: disable-error-code="no-any-return, untyped-decorator, no-untyped-call"

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
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
    "items",  # groups of slots, times blocks; a slot is one chunk of time of one batch row
    "slots",
    "span",  # slots in a group
    "chunks",  # in a batch row
    "chunk",  # steps in a chunk
    "blocks",  # blocks of channels
    "block",  # channels in a block
    "rows",  # steps in a tile, at most
    "width",  # D
    "time",  # T
    "stream",  # 1: write y, or dx, past the caches; their rows and blocks must begin on a cache line
    "x",
    "x_batch",
    "x_time",
    "state",  # or 0
    "state_batch",
    "state_time",
    "weight",
    "weight_tap",
    "bias",  # forward only
    "positions",  # int64 [B, T], or 0
    "positions_batch",
    "positions_time",
    "offsets",  # int64 [sequences+1] of packed sequences, or 0
    "sequences",
    "out",  # y, or dx: [B, T, D] contiguous
    "dy",  # from here on backward only
    "dy_batch",
    "dy_time",
    "leaving",  # gradient of the new state, or 0
    "leaving_batch",
    "leaving_time",
    "dstate",  # [B, K-1, D] contiguous; with state
    "sums",  # wide [groups, K+1, D], zeros: gradients of weight's rows and of bias
)
"""Names of the integers. Addresses in bytes, strides in elements; data unless said otherwise; wide: accumulator."""

_AT = {name: index for index, name in enumerate(FIELDS)}
_ITEMS, _SLOTS, _SPAN, _CHUNKS, _CHUNK = (_AT[n] for n in ("items", "slots", "span", "chunks", "chunk"))
_BLOCKS, _BLOCK, _ROWS, _WIDTH, _TIME = (_AT[n] for n in ("blocks", "block", "rows", "width", "time"))
_STREAM, _X, _STATE, _WEIGHT, _TAP = (_AT[n] for n in ("stream", "x", "state", "weight", "weight_tap"))
_BIAS, _POSITIONS, _OUT, _DY = (_AT[n] for n in ("bias", "positions", "out", "dy"))
_OFFSETS, _SEQUENCES = _AT["offsets"], _AT["sequences"]
_LEAVING, _DSTATE, _SUMS = (_AT[n] for n in ("leaving", "dstate", "sums"))

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
    stream: bool

    @property
    def wide(self) -> Any:
        return ir.DoubleType() if self.element is types.float64 else ir.FloatType()

    def of(self, scalar: Any) -> Any:
        """The type of ``count`` values of a scalar type."""
        return scalar if self.count == 1 else ir.VectorType(scalar, self.count)

    def constant(self, scalar: Any, value: float) -> Any:
        return ir.Constant(self.of(scalar), value if self.count == 1 else [value] * self.count)

    def zero(self) -> Any:
        return self.constant(self.wide, 0.0)

    def _at(self, address: Any, scalar: Any) -> Any:
        row = self.builder.inttoptr(address, scalar.as_pointer())
        return self.builder.bitcast(self.builder.gep(row, [self.index]), self.of(scalar).as_pointer())

    def load_wide(self, address: Any) -> Any:
        return self.builder.load(self._at(address, self.wide), align=8 if self.element is types.float64 else 4)

    def store_wide(self, value: Any, address: Any) -> None:
        self.builder.store(value, self._at(address, self.wide), align=8 if self.element is types.float64 else 4)

    def load(self, address: Any) -> Any:
        """Data, widened."""
        value = self.builder.load(self._at(address, _MEMORY[self.element]), align=_BYTES[self.element])
        if self.element is types.int16:
            return self.builder.fpext(value, self.of(self.wide))
        if self.element is types.uint16:
            # bfloat16 is the upper half of a float32
            bits = self.builder.shl(self.builder.zext(value, self.of(_INT32)), self.constant(_INT32, 16))
            return self.builder.bitcast(bits, self.of(self.wide))
        return value

    def load_if(self, condition: Any, address: Any, readable: Any) -> Any:
        """Data where the condition holds, else zeros; ``readable`` is an address that may always be read."""
        return self.builder.select(condition, self.load(self.builder.select(condition, address, readable)), self.zero())

    def store(self, value: Any, address: Any) -> None:
        """Data, rounded to nearest, ties to even; NaN stays NaN."""
        if self.element is types.int16:
            value = self.builder.fptrunc(value, self.of(ir.HalfType()))
        elif self.element is types.uint16:
            value = self._round_to_bfloat16(value)
        store = self.builder.store(value, self._at(address, _MEMORY[self.element]), align=_BYTES[self.element])
        if self.stream and self.count > 1:
            store.align = _CACHE_LINE
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

    def multiply_add(self, p: Any, q: Any, r: Any) -> Any:
        """p q + r, fused where the processor can."""
        kind = self.of(self.wide)
        name = f"llvm.fmuladd.{'' if self.count == 1 else f'v{self.count}'}"
        name += "f64" if self.element is types.float64 else "f32"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind] * 3), name)
        return self.builder.call(function, [p, q, r])


_Body = Callable[..., Sequence[Any]]


def _loop(builder: Any, start: Any, end: Any, step: int, body: _Body, carried: Sequence[Any] = ()) -> list[Any]:
    """Emit ``for index in range(start, end, step): carried = body(index, *carried)``; returns what is carried out."""
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("loop.end")
    builder.cbranch(builder.icmp_signed("<", start, end), loop, after)
    builder.position_at_end(loop)
    index = builder.phi(_INT64)
    index.add_incoming(start, before)
    held = [builder.phi(value.type) for value in carried]
    for phi, value in zip(held, carried, strict=True):
        phi.add_incoming(value, before)
    results = body(index, *held)
    following, last = builder.add(index, _INT64(step)), builder.block
    for phi, value in zip((index, *held), (following, *results), strict=True):
        phi.add_incoming(value, last)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
    builder.position_at_end(after)
    out = [builder.phi(value.type) for value in carried]
    for phi, value, result in zip(out, carried, results, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(result, last)
    return out


def _tile(emit: Callable[..., None]) -> Any:
    """A numba function ``(data, stream, rows, channels, numbers)``: ``emit(lanes, taps, rows, *numbers)`` over a block.

    A vector fills a cache line of data; what is left of the block goes one channel at a time.
    """

    @_intrinsic
    def tile(typing: Any, data: Any, stream: Any, rows: Any, channels: Any, numbers: Any) -> Any:
        element, taps = data.dtype.dtype, data.dtype.count

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, stream, rows, channels, packed = args
            unpacked = [builder.extract_value(packed, i) for i in range(len(numbers))]
            vector = _CACHE_LINE // _BYTES[element]
            whole = builder.and_(channels, _INT64(-vector))

            def vectors(past: bool) -> None:
                def body(index: Any) -> Sequence[Any]:
                    emit(_Lanes(builder, element, vector, index, past), taps, rows, *unpacked)
                    return ()

                _loop(builder, _INT64(0), whole, vector, body)

            def single(index: Any) -> Sequence[Any]:
                emit(_Lanes(builder, element, 1, index, False), taps, rows, *unpacked)
                return ()

            with builder.if_else(builder.icmp_signed("!=", stream, _INT64(0))) as (streamed, kept):
                with streamed:
                    vectors(True)
                with kept:
                    vectors(False)
            _loop(builder, whole, channels, 1, single)
            return context.get_dummy_value()

        return types.void(data, stream, rows, channels, numbers), generate

    return tile


def _weights(v: _Lanes, taps: int, weight: Any, weight_step: Any) -> list[Any]:
    """w_0 .. w_{K-1}: what multiplies the input of this step, of the step before, ..."""
    rows = [v.load(v.builder.add(weight, v.builder.mul(weight_step, _INT64(j)))) for j in range(taps)]
    return rows[::-1]


@_tile
def _forward_tile(
    v: _Lanes,
    taps: int,
    rows: Any,
    x: Any,
    x_step: Any,
    state: Any,  # where the row of this step would be if the state went on
    state_step: Any,
    inside: Any,  # how many steps back x begins
    reach: Any,  # how many steps back a tap counts
    out: Any,
    out_step: Any,
    weight: Any,
    weight_step: Any,
    bias: Any,
) -> None:
    b = v.builder
    w, constant = _weights(v, taps, weight, weight_step), v.load(bias)
    earlier = []
    for k in range(1, taps):
        back = _INT64(k)
        in_x = b.icmp_signed("<=", back, inside)
        row = b.select(in_x, b.sub(x, b.mul(x_step, back)), b.sub(state, b.mul(state_step, back)))
        earlier.append(v.load_if(b.icmp_signed("<=", back, reach), row, x))

    def step(r: Any, *before: Any) -> Sequence[Any]:
        inputs = [v.load(b.add(x, b.mul(x_step, r))), *before]
        total = constant
        for tap, value in zip(w, inputs, strict=True):
            total = v.multiply_add(tap, value, total)
        v.store(total, b.add(out, b.mul(out_step, r)))
        return inputs[:-1]

    _loop(b, _INT64(0), rows, 1, step, earlier)


@_tile
def _backward_tile(
    v: _Lanes,
    taps: int,
    rows: Any,
    x: Any,  # or the state's row
    x_step: Any,
    dy: Any,
    dy_step: Any,
    used: Any,  # bit k: the step k later reads this one through tap k
    leaving: Any,  # row of the new state's gradient for this step, or 0
    out: Any,
    out_step: Any,
    weight: Any,
    weight_step: Any,
    sums: Any,
    sums_step: Any,
) -> None:
    b = v.builder
    w = _weights(v, taps, weight, weight_step)
    total_rows = [b.add(sums, b.mul(sums_step, _INT64(j))) for j in (*range(taps - 1, -1, -1), taps)]
    totals = [v.load_wide(row) for row in total_rows]  # of w_0 .. w_{K-1}, then of the bias
    through = v.load_if(b.icmp_signed("!=", leaving, _INT64(0)), leaving, x)

    def later(k: int) -> tuple[Any, Any]:
        used_here = b.icmp_signed("!=", b.and_(used, _INT64(1 << k)), _INT64(0))
        return used_here, b.add(dy, b.mul(dy_step, _INT64(k)))

    first = [v.load_if(*later(k), x) for k in range(taps - 1)]
    furthest_used, furthest = later(taps - 1)

    def step(r: Any, *carried: Any) -> Sequence[Any]:
        totals, known = carried[: taps + 1], carried[taps + 1 :]
        at, readable = b.add(furthest, b.mul(dy_step, r)), b.add(x, b.mul(x_step, r))
        gradients = [*known, v.load_if(furthest_used, at, readable)]
        value, result = v.load(readable), through
        for tap, gradient in zip(w, gradients, strict=True):
            result = v.multiply_add(tap, gradient, result)
        v.store(result, b.add(out, b.mul(out_step, r)))
        sums = [v.multiply_add(gradient, value, t) for gradient, t in zip(gradients, totals[:-1], strict=True)]
        return [*sums, b.fadd(totals[-1], gradients[0]), *gradients[1:]]

    done = _loop(b, _INT64(0), rows, 1, step, [*totals, *first])
    for value, row in zip(done[: taps + 1], total_rows, strict=True):
        v.store_wide(value, row)


@_intrinsic
def _int64_at(typing: Any, address: Any, index: Any) -> Any:
    """Reads an array of int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(args[0], _INT64.as_pointer()), [args[1]]))

    return types.int64(types.int64, types.int64), generate


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


_taps = _known(lambda kind: kind.count)
_data_bytes = _known(lambda kind: _BYTES[kind.dtype])
_wide_bytes = _known(lambda kind: 8 if kind.dtype is types.float64 else 4)


@_njit
def _input(data: Any, name: int, batch: int, channel: int) -> tuple[int, int]:
    """(address, bytes per step) of an input in one batch row, from ``channel`` on."""
    size = _data_bytes(data)
    return _field(data, name) + (batch * _field(data, name + 1) + channel) * size, _field(data, name + 2) * size


@_njit
def _output(data: Any, name: int, batch: int, rows: int, channel: int) -> int:
    """Address of an output [B, rows, D] in one batch row, from ``channel`` on."""
    return _field(data, name) + (batch * rows * _field(data, _WIDTH) + channel) * _data_bytes(data)


@_njit
def _reach(data: Any, batch: int, t: int) -> int:
    """How many steps back a tap of step t counts, as positions have it."""
    positions, furthest = _field(data, _POSITIONS), _taps(data) - 1
    if positions == 0:
        return furthest
    at = batch * _field(data, _POSITIONS + 1) + t * _field(data, _POSITIONS + 2)
    return max(0, min(furthest, _int64_at(positions, at)))


@_njit
def _first_sequence(data: Any, t: int) -> int:
    """The packed sequence to begin with in a chunk that starts at step t: the first that ends after t or starts at it.

    Sequences without steps belong to the chunk of the step where they stand, those at the very end to the last chunk.
    """
    offsets, low, high = _field(data, _OFFSETS), 0, _field(data, _SEQUENCES)
    while low < high:
        middle = (low + high) // 2
        if _int64_at(offsets, middle + 1) > t or _int64_at(offsets, middle) >= t:
            high = middle
        else:
            low = middle + 1
    return low


@_njit
def _forward_slot(data: Any, batch: int, begin: int, end: int, channel: int, channels: int) -> None:
    """Steps begin .. end of a batch row."""
    if _field(data, _OFFSETS) == 0:
        _forward_steps(data, batch, batch, 0, begin, end, channel, channels)
        return
    row = _first_sequence(data, begin)
    while row < _field(data, _SEQUENCES):
        start, stop = _int64_at(_field(data, _OFFSETS), row), _int64_at(_field(data, _OFFSETS), row + 1)
        if start >= end:
            break
        _forward_steps(data, 0, row, start, max(begin - start, 0), min(end, stop) - start, channel, channels)
        row += 1


@_njit
def _forward_steps(
    data: Any, batch: int, row: int, start: int, begin: int, end: int, channel: int, channels: int
) -> None:
    """Steps begin .. end of the sequence that starts at step ``start``, with row ``row`` of the state before it."""
    furthest, size, most, stream = _taps(data) - 1, _data_bytes(data), _field(data, _ROWS), _field(data, _STREAM)
    x, x_step = _input(data, _X, batch, channel)
    state, state_step = _input(data, _STATE, row, channel)
    fresh, segmented = _field(data, _STATE) == 0, _field(data, _POSITIONS) != 0
    weight, weight_step = _field(data, _WEIGHT) + channel * size, _field(data, _TAP) * size
    bias = _field(data, _BIAS) + channel * size
    out, out_step = _output(data, _OUT, batch, _field(data, _TIME), channel), _field(data, _WIDTH) * size
    x += start * x_step
    out += start * out_step
    t = begin
    while t < end:
        reach, rows = _reach(data, batch, start + t), 1
        if fresh:
            reach = min(reach, t)
        if t >= furthest and reach == furthest:
            longest = min(most, end - t)
            if not segmented:
                rows = longest
            while rows < longest and _reach(data, batch, start + t + rows) == furthest:
                rows += 1
        earlier = (x + t * x_step, x_step, state + (furthest + t) * state_step, state_step, t, reach)
        numbers = (*earlier, out + t * out_step, out_step, weight, weight_step, bias)
        _forward_tile(data, stream, rows, channels, numbers)
        t += rows


@_njit
def _used(data: Any, batch: int, start: int, time: int, s: int) -> int:
    """Bit k: step s + k of a sequence of ``time`` steps exists, and its tap k, which reads step s, counts."""
    used = 0
    for k in range(_taps(data)):
        if 0 <= s + k < time and (k == 0 or _reach(data, batch, start + s + k) >= k):
            used |= 1 << k
    return used


@_njit
def _backward_slot(data: Any, batch: int, begin: int, end: int, channel: int, channels: int, sums: int) -> None:
    """Steps begin .. end of a batch row, and the states of the sequences that start among them."""
    time = _field(data, _TIME)
    if _field(data, _OFFSETS) == 0:
        _backward_steps(data, batch, batch, 0, time, begin, end, channel, channels, sums)
        return
    row = _first_sequence(data, begin)
    while row < _field(data, _SEQUENCES):
        start, stop = _int64_at(_field(data, _OFFSETS), row), _int64_at(_field(data, _OFFSETS), row + 1)
        if start >= end and not start == end == time:
            break
        first, last = max(begin - start, 0), min(end, stop) - start
        _backward_steps(data, 0, row, start, stop - start, first, last, channel, channels, sums)
        row += 1


@_njit
def _backward_steps(
    data: Any,
    batch: int,
    row: int,
    start: int,
    time: int,
    begin: int,
    end: int,
    channel: int,
    channels: int,
    sums: int,
) -> None:
    """Steps begin .. end of the sequence of ``time`` steps from step ``start`` on; its state too if begin is 0."""
    furthest, size, most, stream = _taps(data) - 1, _data_bytes(data), _field(data, _ROWS), _field(data, _STREAM)
    width, segmented = _field(data, _WIDTH), _field(data, _POSITIONS) != 0
    x, x_step = _input(data, _X, batch, channel)
    state, state_step = _input(data, _STATE, row, channel)
    dy, dy_step = _input(data, _DY, batch, channel)
    leaving, leaving_step = _input(data, _LEAVING, row, channel)
    weight, weight_step = _field(data, _WEIGHT) + channel * size, _field(data, _TAP) * size
    out, dstate = (
        _output(data, _OUT, batch, _field(data, _TIME), channel),
        _output(data, _DSTATE, row, furthest, channel),
    )
    step, sums_step, every = width * size, width * _wide_bytes(data), (1 << (furthest + 1)) - 1
    x += start * x_step
    dy += start * dy_step
    out += start * step
    s = begin
    if begin == 0 and _field(data, _STATE) != 0:
        s = -furthest
    while s < end:
        used, rows = _used(data, batch, start, time, s), 1
        place = s - (time - furthest)  # in the new state
        left = leaving + place * leaving_step if place >= 0 and _field(data, _LEAVING) != 0 else 0
        if s >= 0 and used == every:
            longest = min(most, end - s)
            if not segmented:
                rows = min(longest, time - furthest - s)
            while rows < longest and _used(data, batch, start, time, s + rows) == every:
                rows += 1
        source, target, past = x + s * x_step, out + s * step, stream
        if s < 0:
            source, target, past = state + (furthest + s) * state_step, dstate + (furthest + s) * step, 0
        numbers = (source, x_step, dy + s * dy_step, dy_step, used, left, target, step, weight, weight_step)
        _backward_tile(data, past, rows, channels, (*numbers, sums, sums_step))
        s += rows


def forward(data: Any) -> None:
    """y."""
    blocks, block, width, time = (
        _field(data, _BLOCKS),
        _field(data, _BLOCK),
        _field(data, _WIDTH),
        _field(data, _TIME),
    )
    chunk, chunks, span, slots = (
        _field(data, _CHUNK),
        _field(data, _CHUNKS),
        _field(data, _SPAN),
        _field(data, _SLOTS),
    )
    item = _take(data)
    while item < _field(data, _ITEMS):
        first, channel = item // blocks * span, item % blocks * block
        for slot in range(first, min(first + span, slots)):
            begin = slot % chunks * chunk
            _forward_slot(data, slot // chunks, begin, min(begin + chunk, time), channel, min(block, width - channel))
        item = _take(data)
    _finish(data)


def backward(data: Any) -> None:
    """dx, dstate, and the sums of every group."""
    blocks, block, width, time = (
        _field(data, _BLOCKS),
        _field(data, _BLOCK),
        _field(data, _WIDTH),
        _field(data, _TIME),
    )
    chunk, chunks, span, slots = (
        _field(data, _CHUNK),
        _field(data, _CHUNKS),
        _field(data, _SPAN),
        _field(data, _SLOTS),
    )
    item = _take(data)
    while item < _field(data, _ITEMS):
        group, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        sums = _field(data, _SUMS) + (group * (_taps(data) + 1) * width + channel) * _wide_bytes(data)
        for slot in range(group * span, min((group + 1) * span, slots)):
            begin = slot % chunks * chunk
            _backward_slot(data, slot // chunks, begin, min(begin + chunk, time), channel, channels, sums)
        item = _take(data)
    _finish(data)


_KERNELS: list[Any] = []
"""Compiled kernels, kept alive as long as their addresses may be called."""


@functools.cache
def compiled(kernel: Callable[[Any], None], dtype: torch.dtype, taps: int) -> Any:
    """A kernel for data of ``dtype`` and that many taps as a ctypes function of the address of its FIELDS.

    Compiled on first use and kept on disk: beside this file, in the user's cache folder, or in NUMBA_CACHE_DIR.
    """
    signature = types.void(types.CPointer(types.UniTuple(_ELEMENTS[dtype], taps)))
    try:
        function = _cfunc(signature, cache=True, nopython=True, error_model="numpy")(kernel)
    except RuntimeError as error:
        # numba's word for "none of these folders can be written": compile again in every process
        if "cannot cache function" not in str(error):
            raise
        function = _cfunc(signature, nopython=True, error_model="numpy")(kernel)
    _KERNELS.append(function)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address)
