"""Arguments of Triton kernels in bundles: a tensor and its strides travel together, and move together.

Time is visited in steps 0, 1, ... of a span; ``reverse`` only makes ``Rows.step`` negative, so no kernel copies or
flips. Channel strides are compile-time constants, which lets the compiler see that neighbouring channels are neighbours
in memory, and so are the row strides of adjacent rows, which makes row offsets immediates; see strides.py. Bases are
64-bit.

An optional bundle is None. Within a loop it is moved under ``if bundle is not None``, since its type must not change.
A constexpr in a bundle stays one until the bundle is assigned to a name; then it is a constant of the machine code, of
which Python's ``if`` and ``reach`` know nothing. What a loop moves has to be assigned before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.host import channel_stride, row_stride, signed_step
from griffin_kernels.ops._triton.strides import WIDE, constant, far, reach


class Rows(NamedTuple):
    """[B,T,D] or [B,T]: the tensor, in a kernel a pointer into it, and strides in elements, ``step`` as visited."""

    at: Any
    batch: Any
    step: Any
    channel: Any


class State(NamedTuple):
    """[N,D]: the tensor and its strides in elements."""

    at: Any
    row: Any
    channel: Any


class Marks(NamedTuple):
    """Packed sequences of programs that own pieces of time.

    enter, leave: rows of [T] int32, the sequence that starts, or ends, at a step, and -1 elsewhere. state, final: the
    states [N,D] that sequences start from and end with.
    """

    enter: Any
    leave: Any
    state: Any
    final: Any


class Channels(NamedTuple):
    """What a program owns: columns [block_d], which of them are inside, and that as a mask, None where all are."""

    columns: Any
    inside: Any
    mask: Any


def rows(tensor: Tensor | None, reverse: bool = False) -> Rows | None:
    """The bundle of a tensor [B,T,D] or [B,T], of bool as bytes; reverse: steps are visited from the last."""
    if tensor is None:
        return None
    channel = constant(0 if tensor.ndim == 2 else channel_stride(tensor))
    plain = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
    return Rows(plain, row_stride(tensor, 0), signed_step(tensor, reverse), channel)


def state(tensor: Tensor | None) -> State | None:
    """The bundle of a tensor [N,D]."""
    return None if tensor is None else State(tensor, row_stride(tensor, 0), constant(channel_stride(tensor)))


def dense_state(tensor: Tensor | None) -> State | None:
    """The bundle of a contiguous tensor [N,D], such as an output."""
    return None if tensor is None else State(tensor, constant(tensor.shape[1]), constant(1))


@bundling
def dense(pointer, row, D: tl.constexpr, SIGN: tl.constexpr):
    """The rows of a contiguous tensor [...,D] from ``row`` on, visited backwards where SIGN is -1."""
    STEP: tl.constexpr = SIGN * D
    return None if pointer is None else Rows(pointer + row * D, 0, STEP if D < WIDE else tl.cast(STEP, tl.int64), 1)


@bundling
def at(rows, batch, time, SIGN: tl.constexpr):
    """The rows of a batch entry from ``time`` on."""
    if rows is not None:
        pointer = rows.at + (batch * rows.batch + time * (SIGN * far(rows.step)))
    return None if rows is None else Rows(pointer, rows.batch, far(rows.step), rows.channel)


@bundling
def later(rows, steps):
    """The rows from ``steps`` steps later on; a compile-time constant takes rows that ``at`` or ``dense`` gave."""
    return None if rows is None else further(rows, far(steps) * rows.step)


@bundling
def further(rows, elements):
    """The rows from ``elements`` elements further on."""
    return Rows(rows.at + elements, rows.batch, rows.step, rows.channel)


@bundling
def marks_at(marks, time, SIGN: tl.constexpr):
    """The marks from ``time`` on."""
    return None if marks is None else marks_later(marks, SIGN * time)


@bundling
def marks_later(marks, steps):
    """The marks from ``steps`` steps later on."""
    return (
        None if marks is None else Marks(later(marks.enter, steps), later(marks.leave, steps), marks.state, marks.final)
    )


@bundling
def own_channels(place, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(row, channels) of program ``place`` of rows * ceil(D / block_d), channels fastest."""
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    columns = (place % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    return place // BLOCKS, Channels(columns, columns < D, None if D % BLOCK_D == 0 else columns < D)


@triton.jit
def tile_offsets(times, columns, rows, BLOCK_T: tl.constexpr, D: tl.constexpr):
    """Offsets [block_t, block_d] of a tile in elements, 64-bit only where 32 are too few. rows: a kernel's argument."""
    REACH: tl.constexpr = (BLOCK_T + 1) * reach(far(rows.step)) + 2 * D * reach(rows.channel)
    if REACH >= 2**31:
        times = times.to(tl.int64)
        columns = columns.to(tl.int64)
    return times[:, None] * far(rows.step) + columns[None, :] * rows.channel


@triton.jit
def load_rows(rows, channels, left, OTHER: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr):
    """ROWS rows as a tuple, every load issued before the first is used.

    TAIL: rows from ``left`` on are outside. Those, and channels that are outside, read OTHER.
    """
    pointers = rows.at + channels.columns * rows.channel
    loaded = ()
    for u in tl.static_range(ROWS):
        if TAIL:
            loaded += (tl.load(pointers + u * far(rows.step), mask=channels.inside & (u < left), other=OTHER),)
        elif channels.mask is not None:
            loaded += (tl.load(pointers + u * far(rows.step), mask=channels.mask, other=OTHER),)
        else:
            loaded += (tl.load(pointers + u * far(rows.step)),)
    return loaded


@triton.jit
def load_flags(flags, left, OTHER: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr):
    """ROWS scalars, one per step, as a tuple; a tuple of OTHER where ``flags`` is None."""
    loaded = ()
    for u in tl.static_range(ROWS):
        if flags is None:
            loaded += (OTHER,)
        elif TAIL:
            loaded += (tl.load(flags.at + u * far(flags.step), mask=u < left, other=OTHER),)
        else:
            loaded += (tl.load(flags.at + u * far(flags.step)),)
    return loaded


@triton.jit
def store_row(rows, u, value, channels, left, TAIL: tl.constexpr):
    """Row u of an output, rounded to its dtype. value: [block_d]."""
    pointers = rows.at + channels.columns * rows.channel + u * far(rows.step)
    value = value.to(rows.at.dtype.element_ty)
    if TAIL:
        tl.store(pointers, value, mask=channels.inside & (u < left))
    elif channels.mask is not None:
        tl.store(pointers, value, mask=channels.mask)
    else:
        tl.store(pointers, value)


@triton.jit
def load_state(state, row, channels, ACC: tl.constexpr, where=True):
    """Row ``row`` of a state [N,D] as [block_d] in ACC; zeros where there is none, or not ``where``."""
    if state is None:
        value = tl.zeros(channels.columns.shape, dtype=ACC)
    else:
        pointers = state.at + tl.cast(row, tl.int64) * state.row + channels.columns * state.channel
        value = tl.load(pointers, mask=channels.inside & where, other=0.0).to(ACC)
    return value


@triton.jit
def store_state(state, row, value, channels, where=True):
    """Row ``row`` of an output [N,D], if there is one and ``where``. value: [block_d]."""
    if state is not None:
        pointers = state.at + tl.cast(row, tl.int64) * state.row + channels.columns * state.channel
        tl.store(pointers, value, mask=channels.inside & where)
