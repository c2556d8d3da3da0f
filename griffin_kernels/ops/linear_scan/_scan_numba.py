"""The compiled code of the numba variants: linear_scan, block_diagonal_scan, complex_scan and their gradients, by rows.

A row is what one time step holds of one block of channels: contiguous, and so are the matrices of its channels, so that
it is read, combined with the carry and written a vector at a time. The carry of a block, in the accumulator's dtype,
stays in the first-level cache for a whole sequence. Kernels are as in _native.py, their rows as in _native_rows.py,
gates, matrices and complex gates as in _scan_lanes.py; the pointer's type holds which of them, and the size n of
matrices. Complex numbers are pairs of channels; for them da_t = g_t conj(h_{t-1}) and c_t = conj(a_t) g_t.

    forward:   c_t = a_t c_{t-1} + x_t              h_t = c_t
    backward:  g_t = dh_t + c_{t+1}                 dx_t = g_t, da_t = g_t h_{t-1}, c_t = a_t g_t

With time cut into chunks, ``reduce`` finds what each chunk does to its carry, c -> product * c + last; ``carries`` runs
that over the chunks, in order; forward or backward then starts every chunk from its own carry. A product of gates
beyond [-1, 1] may overflow where the carry does not, or underflow and grow again: it becomes NaN, and ``carries`` goes
through such a chunk step by step. A chunk with a reset hands on its last, whatever entered it. Matrices are not cut so.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba

from griffin_kernels.ops import _native_exp, _native_rows
from griffin_kernels.ops._native import (
    BYTES,
    Strided,
    data_bytes,
    element_of,
    field,
    finish,
    int32_at,
    int64_at,
    known,
    places,
    take,
)
from griffin_kernels.ops._native_rows import STREAM, bounds, copy, input_at, is_set, number_of, row, wide_bytes, zero
from griffin_kernels.ops.linear_scan import _scan_lanes
from griffin_kernels.ops.linear_scan._scan_lanes import AHEAD, KEPT, PRODUCT, WIDE, ScanLanes, has, size_of

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements. Data unless said otherwise; wide: accumulator."""

    reset: Strided  # bool [B, T], or 0
    a: Strided  # [B, T, D * n], contiguous within a step; n = 1 of gates, which may be wide
    x: Strided  # x, or dh
    h: Strided  # read by the gradient
    given: Strided  # x, read by the gradient of a convex scan
    pool: Strided  # wide [P, D]: where states are kept, or 0
    items: int  # slots * blocks; a slot is one chunk of one sequence
    blocks: int  # blocks of channels
    block: int  # channels in a block, a multiple of n
    width: int  # D
    time: int  # T
    sequences: int  # N
    chunk: int  # steps in a chunk
    chunks: int  # chunks of every sequence, where all are equally long
    offsets: int  # int32 [N+1] of packed sequences, or 0
    slots: int  # int64 [N+1]: slot of each packed sequence's first chunk, or 0
    backwards: int  # 1: this kernel visits time from the last step to the first
    hints: int  # STREAM + AHEAD: how the rows of forward and backward are moved
    gradient: int  # 1: reduce for the gradient
    initial: int  # wide [N, D]: carry that enters a sequence, or 0
    final: int  # wide [N, D]: the running carry of a sequence's last chunk; what leaves the sequence
    carries: int  # wide [slots, D]: carry of every other chunk, or 0 where time is not cut
    products: int  # wide [slots, D], with carries
    before: int  # wide [N, D]: h0, for the gradient, or 0
    out: int  # h, or dx; [B, T, D] contiguous
    da: int  # [B, T, D * n] contiguous, of a's dtype
    totals: int  # wide [slots, D]: products of a slot's gates, or sums of their gradients, or 0
    joined: int  # wide [N, D]: products of whole sequences, where time is cut, or 0
    keep: int  # int64 [B*T]: the row of the pool that the state after a step goes to, or a negative one; or 0


AT = places(Fields)

FILES = (__file__, str(_native_rows.__file__), str(_scan_lanes.__file__), str(_native_exp.__file__))
"""Sources that the kernels are made from, besides _native.py."""


class ScanPart(NamedTuple):
    """What a work item is of: one slot, that is one chunk of one sequence, and one block of channels."""

    slot: int
    sequence: int
    last: bool  # chunk of its sequence
    batch: int
    first: int  # step of the chunk as visited
    sign: int  # of the next step: 1 or -1
    steps: int
    channel: int
    channels: int


_known_size = known(lambda data: size_of(number_of(data)))  # elements of a for each channel
_multiplies = known(lambda data: int(has(number_of(data), PRODUCT)))
_keeps = known(lambda data: int(has(number_of(data), KEPT)))
gate_bytes = known(lambda data: 4 if has(number_of(data), WIDE) else BYTES[element_of(data)])
_row, _hinted_row = row(ScanLanes), row(ScanLanes, (0, STREAM, AHEAD, STREAM | AHEAD))


@_hinted_row
def _forward_row(v: ScanLanes, x: Any, a: Any, out: Any, carry: Any, next_x: Any, next_a: Any) -> None:
    v.ahead(next_x, next_a)
    value = v.step(a, v.read(carry), v.load(x))
    v.write(value, carry)
    v.store(value, out)


def _gradient(v: ScanLanes, before: Any, dh: Any, a: Any, dx: Any, da: Any, carry: Any) -> None:
    g = v.add(v.load(dh), v.read(carry))
    v.write(v.back(a, g), carry)
    v.store(g, dx)
    for i in range(v.parts):
        v.matrices(i).store(v.outer(g, before, i), da)


@_hinted_row
def _backward_row(v: ScanLanes, before: Any, dh: Any, a: Any, dx: Any, da: Any, carry: Any, *ahead: Any) -> None:
    v.ahead(*ahead)
    _gradient(v, v.load(before), dh, a, dx, da, carry)


@_row
def _backward_first_row(v: ScanLanes, before: Any, dh: Any, a: Any, dx: Any, da: Any, carry: Any) -> None:
    _gradient(v, v.read(before), dh, a, dx, da, carry)


@_row
def _backward_stop_row(v: ScanLanes, dh: Any, dx: Any, da: Any, carry: Any) -> None:
    # no state entered this step: neither a nor an earlier step has a gradient, whatever g is
    v.store(v.add(v.load(dh), v.read(carry)), dx)
    for i in range(v.parts):
        v.matrices(i).store(v.zero(), da)
    v.write(v.zero(), carry)


def _forward_after(v: ScanLanes, x: Any, a: Any, carry: Any) -> Any:
    return v.step(a, carry, v.load(x))


def _backward_after(v: ScanLanes, dh: Any, a: Any, carry: Any) -> Any:
    return v.back(a, v.add(v.load(dh), carry))


def _reduce_row(after: Any, gradient: bool) -> Any:
    """One step of a chunk's product and of what it makes of a zero carry."""

    @_row
    def reduced(v: ScanLanes, x: Any, a: Any, product: Any, last: Any) -> None:
        v.write(after(v, x, a, v.read(last)), last)
        v.write(v.grown(v.read(product), v.conjugate(v.gate(a)) if gradient else v.gate(a)), product)

    return reduced


def _walk_row(after: Any) -> Any:
    """One step of the carry where the chunk's product is NaN."""

    @_row
    def walked(v: ScanLanes, x: Any, a: Any, product: Any, carry: Any) -> None:
        state = v.read(carry)
        v.write(v.builder.select(v.lost(v.read(product)), after(v, x, a, state), state), carry)

    return walked


_forward_reduce_row, _backward_reduce_row = _reduce_row(_forward_after, False), _reduce_row(_backward_after, True)
_forward_walk_row, _backward_walk_row = _walk_row(_forward_after), _walk_row(_backward_after)


@_row
def _carry_row(v: ScanLanes, product: Any, last: Any, carry: Any) -> None:
    # last: what the chunk makes of a zero carry, replaced by the carry that enters it
    entering, factor, own = v.read(carry), v.read(product), v.read(last)
    walk = v.builder.or_(v.lost(factor), v.endless(own))
    v.write(v.builder.select(walk, entering, v.through(factor, entering, own)), carry)
    v.write(v.builder.select(walk, v.constant(math.nan), factor), product)
    v.write(entering, last)


@_row
def _swap_row(v: ScanLanes, last: Any, carry: Any) -> None:
    entering = v.read(carry)
    v.write(v.read(last), carry)
    v.write(entering, last)


@_row
def one_row(v: ScanLanes, target: Any) -> None:
    v.write(v.one(), target)


@_row
def _product_row(v: ScanLanes, a: Any, product: Any) -> None:
    v.write(v.multiply(v.gate(a), v.read(product)), product)


zero_row, copy_row = row()(zero), row()(copy)


@_njit(error_model="numpy")
def part_at(data: Any, item: int) -> ScanPart:
    """The part that a work item of ``forward``, ``backward`` and ``reduce`` is of."""
    blocks, block, chunk = field(data, AT.blocks), field(data, AT.block), field(data, AT.chunk)
    slot, channel = item // blocks, item % blocks * block
    table = field(data, AT.slots)
    if table == 0:
        chunks = field(data, AT.chunks)
        sequence, place = slot // chunks, slot % chunks
    else:
        sequence, high = 0, field(data, AT.sequences)
        while high - sequence > 1:
            middle = (sequence + high) // 2
            if int64_at(table, middle) <= slot:
                sequence = middle
            else:
                high = middle
        chunks = int64_at(table, sequence + 1) - int64_at(table, sequence)
        place = slot - int64_at(table, sequence)
    batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
    sign = -1 if field(data, AT.backwards) else 1
    first = (begin if sign == 1 else end - 1) + sign * place * chunk
    steps = min(chunk, end - begin - place * chunk)
    channels = min(block, field(data, AT.width) - channel)
    return ScanPart(slot, sequence, place == chunks - 1, batch, first, sign, steps, channel, channels)


@_njit
def gates_at(data: Any, batch: int, element: int) -> tuple[int, int]:
    """(address, bytes per step) of gates or matrices, as ``input_at``."""
    size = gate_bytes(data)
    return field(data, AT.a) + (batch * field(data, AT.a + 1) + element) * size, field(data, AT.a + 2) * size


@_njit
def output_at(data: Any, name: int, part: ScanPart, size: int) -> tuple[int, int]:
    """(address, bytes per step) of an output of ``size`` elements for each channel, from the part's channels on."""
    step = field(data, AT.width) * size * data_bytes(data)
    return field(data, name) + part.batch * field(data, AT.time) * step + part.channel * size * data_bytes(data), step


@_njit
def wide_at(data: Any, name: int, row: int, channel: int) -> int:
    """Address of a row of a wide [rows, D] array, from ``channel`` on."""
    return field(data, name) + (row * field(data, AT.width) + channel) * wide_bytes(data)


@_njit
def _started(data: Any, part: ScanPart) -> int:
    """Address of a sequence's running carry, set to what enters the sequence."""
    carry = wide_at(data, AT.final, part.sequence, part.channel)
    if field(data, AT.initial) == 0:
        zero_row(data, 0, part.channels, (carry,))
    else:
        copy_row(data, 0, part.channels, (wide_at(data, AT.initial, part.sequence, part.channel), carry))
    return carry


@_njit
def carry_at(data: Any, part: ScanPart) -> int:
    """Address of the running carry of a slot, which holds what enters the slot."""
    if field(data, AT.carries) == 0:
        return _started(data, part)
    if part.last:
        return wide_at(data, AT.final, part.sequence, part.channel)
    return wide_at(data, AT.carries, part.slot, part.channel)


@_njit
def _keep(data: Any, part: ScanPart, t: int, carry: int) -> None:
    """Copy the state after a step into the pool, if it is kept."""
    target = int64_at(field(data, AT.keep), part.batch * field(data, AT.time) + t)
    if target >= 0:
        row = target * field(data, AT.pool + 1) + part.channel
        copy_row(data, 0, part.channels, (carry, field(data, AT.pool) + row * wide_bytes(data)))


def forward(data: Any) -> None:
    """h and the running carries; states that are kept."""
    hints, size = field(data, AT.hints), _known_size(data)
    item = take(data, 0)
    while item < field(data, AT.items):
        part = part_at(data, item)
        carry = carry_at(data, part)
        x, x_step = input_at(data, AT.x, part.batch, part.channel)
        a, a_step = gates_at(data, part.batch, part.channel * size)
        out, out_step = output_at(data, AT.out, part, 1)
        product = wide_at(data, AT.totals, part.slot, part.channel)
        if _multiplies(data):
            one_row(data, 0, part.channels, (product,))
        for k in range(part.steps):
            t = part.first + k * part.sign
            later = t + part.sign
            if is_set(data, AT.reset, part.batch, t):
                zero_row(data, 0, part.channels, (carry,))
                if _multiplies(data):
                    zero_row(data, 0, part.channels, (product,))
            if _multiplies(data):
                _product_row(data, 0, part.channels, (a + t * a_step, product))
            rows = (x + t * x_step, a + t * a_step, out + t * out_step, carry, x + later * x_step, a + later * a_step)
            _forward_row(data, hints, part.channels, rows)
            if _keeps(data):
                _keep(data, part, t, carry)
        item = take(data, 0)
    finish(data)


def backward(data: Any) -> None:
    """dx, da and the running carries."""
    hints, size = field(data, AT.hints), _known_size(data)
    item = take(data, 0)
    while item < field(data, AT.items):
        part = part_at(data, item)
        carry = carry_at(data, part)
        dh, dh_step = input_at(data, AT.x, part.batch, part.channel)
        a, a_step = gates_at(data, part.batch, part.channel * size)
        h, h_step = input_at(data, AT.h, part.batch, part.channel)
        (dx, dx_step), (da, da_step) = output_at(data, AT.out, part, 1), output_at(data, AT.da, part, size)
        for k in range(part.steps):
            t = part.first + k * part.sign
            later = t + part.sign
            dh_row, a_row, dx_row, da_row = dh + t * dh_step, a + t * a_step, dx + t * dx_step, da + t * da_step
            first = part.last and k == part.steps - 1  # in the order of the forward pass
            if is_set(data, AT.reset, part.batch, t) or (first and field(data, AT.before) == 0):
                _backward_stop_row(data, 0, part.channels, (dh_row, dx_row, da_row, carry))
            elif first:
                before = wide_at(data, AT.before, part.sequence, part.channel)
                _backward_first_row(data, 0, part.channels, (before, dh_row, a_row, dx_row, da_row, carry))
            else:
                before = h + later * h_step
                ahead = (dh + later * dh_step, a + later * a_step, before + part.sign * h_step)
                _backward_row(data, hints, part.channels, (before, dh_row, a_row, dx_row, da_row, carry, *ahead))
        item = take(data, 0)
    finish(data)


def reduce(data: Any) -> None:
    """products and carries: what each chunk but a sequence's last does to the carry that enters it."""
    gradient = field(data, AT.gradient)
    item = take(data, 0)
    while item < field(data, AT.items):
        part = part_at(data, item)
        if not part.last:
            product = wide_at(data, AT.products, part.slot, part.channel)
            last = wide_at(data, AT.carries, part.slot, part.channel)
            one_row(data, 0, part.channels, (product,))
            zero_row(data, 0, part.channels, (last,))
            x, x_step = input_at(data, AT.x, part.batch, part.channel)
            a, a_step = gates_at(data, part.batch, part.channel)
            for k in range(part.steps):
                t = part.first + k * part.sign
                reset = is_set(data, AT.reset, part.batch, t)
                if reset:
                    zero_row(data, 0, part.channels, (product,))
                    zero_row(data, 0, part.channels, (last,))
                rows = (x + t * x_step, a + t * a_step, product, last)
                if not gradient:
                    _forward_reduce_row(data, 0, part.channels, rows)
                elif not reset:
                    _backward_reduce_row(data, 0, part.channels, rows)
        item = take(data, 0)


@_njit
def any_reset(data: Any, part: ScanPart) -> bool:
    """Whether a chunk has a reset."""
    for k in range(part.steps):
        if is_set(data, AT.reset, part.batch, part.first + k * part.sign):
            return True
    return False


@_njit
def _any_lost(data: Any, product: int, channels: int) -> bool:
    """Whether a row of products holds NaN: an exponent of ones with a fraction."""
    found = False
    if wide_bytes(data) == 4:
        for index in range(channels):
            found |= (int32_at(product, index) & 0x7FFFFFFF) > 0x7F800000
    else:
        for index in range(channels):
            found |= (int64_at(product, index) & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000
    return found


@_njit
def _walk(data: Any, part: ScanPart, product: int, carry: int) -> None:
    """The carry through a chunk without resets, step by step where its product is NaN."""
    x, x_step = input_at(data, AT.x, part.batch, part.channel)
    a, a_step = gates_at(data, part.batch, part.channel)
    for k in range(part.steps):
        t = part.first + k * part.sign
        rows = (x + t * x_step, a + t * a_step, product, carry)
        if field(data, AT.gradient):
            _backward_walk_row(data, 0, part.channels, rows)
        else:
            _forward_walk_row(data, 0, part.channels, rows)


def carries(data: Any) -> None:
    """The carry that enters every chunk, from ``reduce``; one item per sequence and block."""
    blocks, table, chunks = field(data, AT.blocks), field(data, AT.slots), field(data, AT.chunks)
    item = take(data, 0)
    while item < field(data, AT.sequences) * blocks:
        sequence = item // blocks
        slot = sequence * chunks if table == 0 else int64_at(table, sequence)
        part = part_at(data, slot * blocks + item % blocks)
        carry = _started(data, part)
        while not part.last:
            product = wide_at(data, AT.products, slot, part.channel)
            last = wide_at(data, AT.carries, slot, part.channel)
            if any_reset(data, part):
                _swap_row(data, 0, part.channels, (last, carry))
            else:
                _carry_row(data, 0, part.channels, (product, last, carry))
                if _any_lost(data, product, part.channels):
                    _walk(data, part, product, carry)
            slot += 1
            part = part_at(data, slot * blocks + item % blocks)
        item = take(data, 0)
