"""Native product of a few rows with int8 weights: y = scale (x W^T) + bias, a row of W read once for all rows of x.

Four rows of W go side by side, each in one vector register of float32 sums; the next four are asked for meanwhile,
since conversion keeps the core too busy to run ahead by itself. Bound by reading W: a byte for each weight.
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
    weight: int  # int8 [N, K]
    scale: int  # float32 [N]
    bias: int  # float32 [N], or 0
    y: int  # float32 [B, N]


AT = places(Fields)


def _rows(count: int) -> Any:
    """A numba function of ``(x, weight, scale, bias, y, inputs, outputs, batch)`` on ``count`` rows of W."""

    @intrinsic
    def run(typing: Any, numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            numbers = (builder.extract_value(args[0], i) for i in range(8))
            x, weight, scale, bias, y, inputs, outputs, batch = numbers

            def row_of_x(index: Any) -> Sequence[Any]:
                at = builder.add(x, builder.mul(index, builder.mul(inputs, INT64(4))))
                sums = _sums(builder, at, weight, inputs, count)
                for row, total in enumerate(sums):
                    one = Lanes(builder, 1)
                    there = builder.icmp_signed("!=", bias, INT64(0))
                    from_bias = one.read(builder.add(builder.select(there, bias, scale), INT64(4 * row)))
                    start = builder.select(there, from_bias, one.constant(0.0))
                    value = one.multiply_add(total, one.read(builder.add(scale, INT64(4 * row))), start)
                    place = builder.add(builder.mul(index, outputs), INT64(row))
                    one.write(value, builder.add(y, builder.mul(place, INT64(4))))
                return ()

            loop(builder, INT64(0), batch, 1, row_of_x)
            return context.get_dummy_value()

        return types.void(numbers), generate

    return run


def _sums(builder: Any, x: Any, weight: Any, inputs: Any, count: int) -> list[Any]:
    """sum_k x[k] weight[row, k] of ``count`` rows, as floats."""
    wide, one = Lanes(builder, lanes()), Lanes(builder, 1)
    line = _native.CACHE_LINE
    lines, whole = builder.and_(inputs, INT64(-line)), builder.and_(inputs, INT64(-wide.count))
    starts = [builder.add(weight, builder.mul(inputs, INT64(row))) for row in range(count)]
    ahead = builder.mul(inputs, INT64(count))

    def add(v: Lanes, index: Any, totals: Sequence[Any]) -> list[Any]:
        given = v.read(builder.add(x, builder.mul(index, INT64(4))))
        return [
            v.multiply_add(given, _widened(v, builder.add(start, index)), total)
            for start, total in zip(starts, totals, strict=True)
        ]

    def whole_line(index: Any, *totals: Any) -> Sequence[Any]:
        for start in starts:
            _ask_for(builder, builder.add(builder.add(start, ahead), index))
        for offset in range(0, line, wide.count):
            totals = tuple(add(wide, builder.add(index, INT64(offset)), totals))
        return totals

    totals = loop(builder, INT64(0), lines, line, whole_line, [wide.constant(0.0)] * count)
    totals = loop(builder, lines, whole, wide.count, lambda index, *held: add(wide, index, held), totals)
    floats = [_total(builder, total) for total in totals]
    return loop(builder, whole, inputs, 1, lambda index, *held: add(one, index, held), floats)


def _widened(v: Lanes, address: Any) -> Any:
    """Bytes as floats."""
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


_several, _single = _rows(SIDE_BY_SIDE), _rows(1)


@named("int8_rows")
def _each(data: Any) -> None:
    inputs, outputs, batch = field(data, AT.inputs), field(data, AT.outputs), field(data, AT.batch)
    x, weight, scale = field(data, AT.x), field(data, AT.weight), field(data, AT.scale)
    bias, y = field(data, AT.bias), field(data, AT.y)
    item = take(data, 0)
    while item < field(data, AT.items):
        row, end = item * PART, min(item * PART + PART, outputs)
        while row < end:
            own_bias = bias + 4 * row if bias != 0 else 0
            at, own_scale, own_y = weight + row * inputs, scale + 4 * row, y + 4 * row
            if row + SIDE_BY_SIDE <= end:
                _several((x, at, own_scale, own_bias, own_y, inputs, outputs, batch))
                row += SIDE_BY_SIDE
            else:
                _single((x, at, own_scale, own_bias, own_y, inputs, outputs, batch))
                row += 1
        item = take(data, 0)


def kernel(data: Any) -> None:
    """y."""
    _each(data)


_KERNELS = Family(Fields, (__file__, str(_native_names.__file__)))


def int8_rows(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """float32 [B, N]. x: float32 [B, K]. weight: int8 [N, K]. scale, bias: float32 [N]. All contiguous, on the CPU."""
    (batch, inputs), outputs = x.shape, weight.shape[0]
    y = x.new_empty(batch, outputs)
    items = -(-outputs // PART)
    fields = _KERNELS.fields(
        items=items,
        outputs=outputs,
        inputs=inputs,
        batch=batch,
        x=address("x", x, 4 * batch * inputs),
        weight=address("weight", weight, outputs * inputs),
        scale=address("scale", scale, 4 * outputs),
        bias=address("bias", bias, 4 * outputs),
        y=address("y", y, 4 * batch * outputs),
    )
    _KERNELS.run(torch.float32, None, fields, (kernel, threads_for(items, outputs * inputs)))
    return y
