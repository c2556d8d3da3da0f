"""Native product of a few rows with weights of 8 or 16 bits: y = scale (x W^T) + bias, a row of W read once for all
rows of x.

Four rows of W go side by side, each in one vector register of float32 sums; the next four are asked for meanwhile,
since conversion keeps the core too busy to run ahead by itself. Bound by reading W: a byte for each int8 weight with
its row's scale, two for each in bfloat16.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import types
from torch import Tensor

from griffin_kernels.ops import _native, _native_names
from griffin_kernels.ops._buffers import address
from griffin_kernels.ops._native import FLOAT, INT8, INT32, INT64, Lanes, field, intrinsic, lanes, loop, places, take
from griffin_kernels.ops._native_call import Family
from griffin_kernels.ops._native_names import named
from griffin_kernels.ops._threads import threads_for

SIDE_BY_SIDE = 4
"""Rows of W at once: as many sums hide the latency of a multiply-add."""
PART = 64
"""Rows of W in a work item."""


class Fields(NamedTuple):
    """Given to the kernel, addresses in bytes; all contiguous."""

    items: int
    outputs: int  # N
    inputs: int  # K
    batch: int  # B
    x: int  # float32 [B, K]
    weight: int  # int8 or bfloat16 [N, K]
    scale: int  # float32 [N] of int8 weights, 0 of bfloat16
    bias: int  # float32 [N], or 0
    y: int  # float32 [B, N]


AT = places(Fields)


def _rows(count: int, size: int) -> Any:
    """A numba function of ``(x, weight, scale, bias, y, inputs, outputs, batch)`` on ``count`` rows of W.

    size: bytes of a weight, 1 for int8 and 2 for bfloat16.
    """

    @intrinsic
    def run(typing: Any, numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            numbers = (builder.extract_value(args[0], i) for i in range(8))
            x, weight, scale, bias, y, inputs, outputs, batch = numbers

            at_any = scale if size == 1 else y

            def row_of_x(index: Any) -> Sequence[Any]:
                at = builder.add(x, builder.mul(index, builder.mul(inputs, INT64(4))))
                sums = _sums(builder, at, weight, inputs, count, size)
                for row, total in enumerate(sums):
                    one = Lanes(builder, 1)
                    there = builder.icmp_signed("!=", bias, INT64(0))
                    # without a bias, anything that can be read
                    from_bias = one.read(builder.add(builder.select(there, bias, at_any), INT64(4 * row)))
                    start = builder.select(there, from_bias, one.constant(0.0))
                    if size == 1:
                        value = one.multiply_add(total, one.read(builder.add(scale, INT64(4 * row))), start)
                    else:
                        value = one.add(total, start)
                    place = builder.add(builder.mul(index, outputs), INT64(row))
                    one.write(value, builder.add(y, builder.mul(place, INT64(4))))
                return ()

            loop(builder, INT64(0), batch, 1, row_of_x)
            return context.get_dummy_value()

        return types.void(numbers), generate

    return run


def _sums(builder: Any, x: Any, weight: Any, inputs: Any, count: int, size: int) -> list[Any]:
    """sum_k x[k] weight[row, k] of ``count`` rows, as floats."""
    wide, one = Lanes(builder, lanes()), Lanes(builder, 1)
    line = _native.CACHE_LINE // size  # weights in a cache line
    lines, whole = builder.and_(inputs, INT64(-line)), builder.and_(inputs, INT64(-wide.count))
    starts = [builder.add(weight, builder.mul(inputs, INT64(size * row))) for row in range(count)]
    ahead = builder.mul(inputs, INT64(size * count))

    def at(start: Any, index: Any) -> Any:
        return builder.add(start, builder.mul(index, INT64(size)))

    def add(v: Lanes, index: Any, totals: Sequence[Any]) -> list[Any]:
        given = v.read(builder.add(x, builder.mul(index, INT64(4))))
        return [
            v.multiply_add(given, _widened(v, at(start, index), size), total)
            for start, total in zip(starts, totals, strict=True)
        ]

    def whole_line(index: Any, *totals: Any) -> Sequence[Any]:
        for start in starts:
            _ask_for(builder, at(builder.add(start, ahead), index))
        for offset in range(0, line, wide.count):
            totals = tuple(add(wide, builder.add(index, INT64(offset)), totals))
        return totals

    totals = loop(builder, INT64(0), lines, line, whole_line, [wide.constant(0.0)] * count)
    totals = loop(builder, lines, whole, wide.count, lambda index, *held: add(wide, index, held), totals)
    floats = [_total(builder, total) for total in totals]
    return loop(builder, whole, inputs, 1, lambda index, *held: add(one, index, held), floats)


def _widened(v: Lanes, address: Any, size: int) -> Any:
    """Weights as floats."""
    if size == 2:
        return Lanes(v.builder, v.count, types.uint16).load(address)
    return v.builder.sitofp(v.builder.load(v.pointer(address, INT8), align=1), v.of(FLOAT))


def _ask_for(builder: Any, address: Any) -> None:
    """Ask for a cache line; any address is safe."""
    kinds = [INT8.as_pointer(), INT32, INT32, INT32]
    module, name = builder.module, "llvm.prefetch.p0"
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    builder.call(function, [builder.inttoptr(address, kinds[0]), INT32(0), INT32(3), INT32(1)])  # read, to L1, data


def _total(builder: Any, vector: Any) -> Any:
    """The sum of a vector's lanes."""
    module, name = builder.module, f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    kind = ir.FunctionType(FLOAT, [FLOAT, vector.type])
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return builder.call(function, [ir.Constant(FLOAT, -0.0), vector], fastmath=("reassoc",))


_bytes, _byte = _rows(SIDE_BY_SIDE, 1), _rows(1, 1)
_halves, _half = _rows(SIDE_BY_SIDE, 2), _rows(1, 2)


@named("few_rows")
def _each(data: Any) -> None:
    inputs, outputs, batch = field(data, AT.inputs), field(data, AT.outputs), field(data, AT.batch)
    x, weight, scale = field(data, AT.x), field(data, AT.weight), field(data, AT.scale)
    bias, y = field(data, AT.bias), field(data, AT.y)
    size = 1 if scale != 0 else 2
    item = take(data, 0)
    while item < field(data, AT.items):
        row, end = item * PART, min(item * PART + PART, outputs)
        while row < end:
            own_bias = bias + 4 * row if bias != 0 else 0
            at, own_scale, own_y = weight + row * inputs * size, scale + 4 * row, y + 4 * row
            own = (x, at, own_scale, own_bias, own_y, inputs, outputs, batch)
            if row + SIDE_BY_SIDE <= end:
                if size == 1:
                    _bytes(own)
                else:
                    _halves(own)
                row += SIDE_BY_SIDE
            else:
                if size == 1:
                    _byte(own)
                else:
                    _half(own)
                row += 1
        item = take(data, 0)


def kernel(data: Any) -> None:
    """y."""
    _each(data)


_KERNELS = Family(Fields, (__file__, str(_native_names.__file__)))


def few_rows(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """float32 [B, N]. x: float32 [B, K]. weight: int8 [N, K] with a scale, or bfloat16 [N, K] without.

    scale, bias: float32 [N]. All contiguous, on the CPU.
    """
    (batch, inputs), outputs = x.shape, weight.shape[0]
    y = x.new_empty(batch, outputs)
    items = -(-outputs // PART)
    fields = _KERNELS.fields(
        items=items,
        outputs=outputs,
        inputs=inputs,
        batch=batch,
        x=address("x", x, 4 * batch * inputs),
        weight=address("weight", weight, outputs * inputs * weight.itemsize),
        scale=address("scale", scale, 4 * outputs),
        bias=address("bias", bias, 4 * outputs),
        y=address("y", y, 4 * batch * outputs),
    )
    _KERNELS.run(torch.float32, None, fields, (kernel, threads_for(items, outputs * inputs)))
    return y
