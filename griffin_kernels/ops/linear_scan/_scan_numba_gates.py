"""The compiled code of the gradient of linear_scan with options, and the product of gates over chunks.

Kernels are as in _scan_numba.py, options as in _scan_lanes.py.

    g_t = dh_t + c_{t+1},   c_t = a_t g_t,   dx_t = g_t (1 - a_t) of a convex scan, otherwise g_t
    da_t = g_t h_{t-1} - g_t x_t of a convex scan, otherwise g_t h_{t-1};  times a_t of logarithms

Where a gate is the same in all steps, da is summed over those of a slot on the way, in the accumulator's dtype.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any

from griffin_kernels.ops._native import field, finish, int64_at, known, take
from griffin_kernels.ops._native_rows import STREAM, input_at, is_set, number_of, row
from griffin_kernels.ops.linear_scan._scan_lanes import AHEAD, CONVEX, LOG, SUMMED, WIDE, GateLanes, has
from griffin_kernels.ops.linear_scan._scan_numba import (
    AT,
    any_reset,
    carry_at,
    copy_row,
    gate_bytes,
    gates_at,
    one_row,
    output_at,
    part_at,
    wide_at,
    zero_row,
)

_sums = known(lambda data: int(has(number_of(data), SUMMED)))
_row, _hinted_row = row(GateLanes), row(GateLanes, (0, STREAM, AHEAD, STREAM | AHEAD))


def _gated(v: GateLanes, before: Any, dh: Any, a: Any, x: Any, dx: Any, da: Any, carry: Any) -> None:
    """before: the state before the step, or None where none entered it."""
    gate, share = v.gate_and_share(a)
    g = v.add(v.load(dh), v.read(carry))
    v.write(v.zero() if before is None else v.multiply(gate, g), carry)
    v.store(g if share is None else v.multiply(g, share), dx)
    slope = v.zero() if before is None else v.multiply(g, before)
    if v.has(CONVEX):
        slope = v.multiply_add(v.builder.fneg(g), v.load(x), slope)
    elif before is None and v.has(SUMMED):
        return
    if v.has(LOG) and (before is not None or v.has(CONVEX)):
        slope = v.multiply(slope, gate)
    if v.has(SUMMED):
        v.write(v.add(v.read(da), slope), da)
    elif v.has(WIDE):
        v.write(slope, da)
    else:
        v.store(slope, da)


@_hinted_row
def _gated_row(v: GateLanes, before: Any, dh: Any, a: Any, x: Any, dx: Any, da: Any, carry: Any, *ahead: Any) -> None:
    v.ahead(*ahead)
    _gated(v, v.load(before), dh, a, x, dx, da, carry)


@_row
def _gated_first_row(v: GateLanes, before: Any, dh: Any, a: Any, x: Any, dx: Any, da: Any, carry: Any) -> None:
    _gated(v, v.read(before), dh, a, x, dx, da, carry)


@_row
def _gated_stop_row(v: GateLanes, dh: Any, a: Any, x: Any, dx: Any, da: Any, carry: Any) -> None:
    _gated(v, None, dh, a, x, dx, da, carry)


@_row
def _join_row(v: GateLanes, own: Any, product: Any) -> None:
    v.write(v.multiply(v.read(own), v.read(product)), product)


def backward(data: Any) -> None:
    """dx, da or its sums, and the running carries."""
    hints, size = field(data, AT.hints), gate_bytes(data)
    item = take(data, 0)
    while item < field(data, AT.items):
        part = part_at(data, item)
        carry = carry_at(data, part)
        dh, dh_step = input_at(data, AT.x, part.batch, part.channel)
        a, a_step = gates_at(data, part.batch, part.channel)
        h, h_step = input_at(data, AT.h, part.batch, part.channel)
        x, x_step = input_at(data, AT.given, part.batch, part.channel)
        dx, dx_step = output_at(data, AT.out, part, 1)
        if _sums(data):
            da, da_step = wide_at(data, AT.totals, part.slot, part.channel), 0
            zero_row(data, 0, part.channels, (da,))
        else:
            da_step = field(data, AT.width) * size
            da = field(data, AT.da) + part.batch * field(data, AT.time) * da_step + part.channel * size
        for k in range(part.steps):
            t = part.first + k * part.sign
            later = t + part.sign
            rows = (dh + t * dh_step, a + t * a_step, x + t * x_step, dx + t * dx_step, da + t * da_step, carry)
            first = part.last and k == part.steps - 1  # in the order of the forward pass
            if is_set(data, AT.reset, part.batch, t) or (first and field(data, AT.before) == 0):
                _gated_stop_row(data, 0, part.channels, rows)
            elif first:
                before = wide_at(data, AT.before, part.sequence, part.channel)
                _gated_first_row(data, 0, part.channels, (before, *rows))
            else:
                before = h + later * h_step
                ahead = (dh + later * dh_step, a + later * a_step, before + part.sign * h_step, x + later * x_step)
                _gated_row(data, hints, part.channels, (before, *rows, *ahead))
        item = take(data, 0)
    finish(data)


def join(data: Any) -> None:
    """The product of every sequence's gates from those of its chunks; one item per sequence and block."""
    blocks, table, chunks = field(data, AT.blocks), field(data, AT.slots), field(data, AT.chunks)
    item = take(data, 0)
    while item < field(data, AT.sequences) * blocks:
        sequence = item // blocks
        slot = sequence * chunks if table == 0 else int64_at(table, sequence)
        part = part_at(data, slot * blocks + item % blocks)
        product = wide_at(data, AT.joined, sequence, part.channel)
        one_row(data, 0, part.channels, (product,))
        while True:
            own = wide_at(data, AT.totals, slot, part.channel)
            if any_reset(data, part):
                copy_row(data, 0, part.channels, (own, product))
            else:
                _join_row(data, 0, part.channels, (own, product))
            if part.last:
                break
            slot += 1
            part = part_at(data, slot * blocks + item % blocks)
        item = take(data, 0)
