"""What the Triton forms of the convolution share, forward and backward: pieces of time, device functions, launches.

Time is cut into pieces of SPAN steps, each of one sequence: a batch entry, or a packed sequence. Steps count from the
sequence's first one; inputs -(K-1) .. -1 are the rows of its state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops import _activation
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import State, at, dense, later, load_state, rows, store_row, tile_offsets
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.temporal_conv1d.op import Call

SEQUENCES = tl.constexpr(128)
"""Offsets of packed sequences that a program looks through at a time."""


class Piece(NamedTuple):
    """Steps ``begin`` to ``end`` of a sequence of ``length`` steps, whose state is row ``row``.

    The sequence starts at step ``first`` of batch entry ``batch``.
    """

    row: Any
    batch: Any
    first: Any
    length: Any
    begin: Any
    end: Any


class ConvSizes(NamedTuple):
    """What a kernel is compiled for: channels, taps, accumulator; steps of a piece; steps and channels of a tile.

    ACTIVATION: its code, 0 for none.
    """

    D: int
    TAPS: int
    ACC: Any
    SPAN: int
    BLOCK_T: int
    BLOCK_D: int
    ACTIVATION: int = 0


@bundling
def piece_of(place, cu_seqlens, T, parts, SPAN: tl.constexpr):
    """Piece ``place``. parts: pieces of a batch entry, or packed sequences.

    Packed, sequence n has the pieces from cu_seqlens[n] // SPAN + n on: as many as it needs, or one more, without
    steps. A sequence without steps has one, so that every state is somebody's. In all T // SPAN + N, which the host
    knows without reading an offset.
    """
    if cu_seqlens is None:
        row = place // parts
        batch = tl.cast(row, tl.int64)
        first = tl.cast(0, tl.int64)
        length = tl.cast(T, tl.int64)
        begin = tl.cast(place % parts, tl.int64) * SPAN
    else:
        row = 0
        for block in range(0, parts, SEQUENCES):
            index = block + 1 + tl.arange(0, SEQUENCES)
            own = index < parts
            base = tl.load(cu_seqlens + index, mask=own, other=0) // SPAN + index
            row += tl.sum((own & (base <= place)).to(tl.int32))
        batch = tl.cast(0, tl.int64)
        first = tl.cast(tl.load(cu_seqlens + row), tl.int64)
        length = tl.cast(tl.load(cu_seqlens + row + 1), tl.int64) - first
        begin = (place - row - first // SPAN) * SPAN
    return Piece(tl.cast(row, tl.int64), batch, first, length, begin, tl.minimum(begin + SPAN, length))


@triton.jit
def load_row(rows, batch, i, channels, where):
    """Row i of a batch entry as [block_d], zeros unless ``where``."""
    row = at(rows, batch, i, 1)
    return tl.load(row.at + channels.columns * row.channel, mask=channels.inside & where, other=0.0)


@triton.jit
def rows_at(rows, batch, i, channels):
    """Pointers [block_t, block_d] to rows i [block_t] of a batch entry."""
    return later(at(rows, batch, 0, 1), i[:, None]).at + channels.columns[None, :] * rows.channel


@triton.jit
def load_reach(positions, piece, t, where, OTHER: tl.constexpr):
    """How many steps back the documents of steps ``t`` of a sequence reach. OTHER unless ``where``."""
    return tl.load(later(at(positions, piece.batch, piece.first, 1), t).at, mask=where, other=OTHER)


@triton.jit
def tile_at(rows, batch, time, steps, channels, D: tl.constexpr, BLOCK_T: tl.constexpr):
    """Pointers [block_t, block_d] to ``steps``, each less than BLOCK_T from ``time``."""
    offsets = tile_offsets(steps, channels.columns, rows, BLOCK_T, D)
    return at(rows, batch, time, 1).at + offsets


@triton.jit
def input_row(x, state, piece, i, channels, TAPS: tl.constexpr, where=True):
    """Input i >= -(K-1) of a sequence as [block_d]: a step of x, or where i < 0 a row of the state, or zeros."""
    value = load_row(x, piece.batch, piece.first + i, channels, where & (i >= 0))
    if state is not None:
        carried = load_row(state, piece.row, i + TAPS - 1, channels, where & (i < 0))
        value = tl.where(i < 0, carried, value)
    return value


@triton.jit
def load_taps(weight, channels, TAPS: tl.constexpr, ACC: tl.constexpr):
    """w_0 .. w_{K-1} as a tuple of [block_d] in ACC: what multiplies the input of this step, of the one before, ..."""
    taps = ()
    for k in tl.static_range(TAPS):
        taps += (load_state(weight, TAPS - 1 - k, channels, ACC),)
    return taps


@triton.jit
def store_new_state(x, state, positions, new_state, piece, channels, D: tl.constexpr, TAPS: tl.constexpr):
    """The last K-1 inputs of a sequence, zeros before its last document, to new_state [N,K-1,D], by its last piece."""
    begin, length = piece.begin, piece.length
    if (piece.end == length) & ((begin < length) | (begin == 0)):
        for j in tl.static_range(TAPS - 1):
            value = input_row(x, state, piece, length - (TAPS - 1) + j, channels, TAPS)
            if positions is not None:
                # a sequence without steps hands its state on
                last = load_reach(positions, piece, length - 1, length > 0, TAPS)
                value = tl.where(last >= TAPS - 2 - j, value, 0.0)
            store_row(dense(new_state, piece.row * (TAPS - 1), D, 1), j, value, channels, 0, False)


def bias_of(call: Any) -> State | None:
    """The bundle of a call's bias."""
    bias = call.bias
    return None if bias is None else State(bias, constant(0), constant(host.channel_stride(bias)))


def pieces_of(call: Any, span: int) -> tuple[int, int]:
    """(pieces of time in all, pieces of a batch entry or packed sequences); see ``piece_of``."""
    batch, time, _ = call.x.shape
    if call.cu_seqlens is None:
        parts = -(-time // span)
        return batch * parts, parts
    parts = call.cu_seqlens.shape[0] - 1
    return time // span + parts, parts


def launch(kernel: Any, call: Any, config: Any, tile: bool, loads: tuple[Tensor, ...], **own: Any) -> Launch:
    """A kernel of either direction, a program per piece of time and block of channels.

    tile: a program loads a tile at a time, not a row. loads: the tensors of that. own: arguments of this kernel alone.
    """
    x, weight, span = call.x, call.weight, getattr(config, "span", config.block_t)
    share = config.block_d * (config.block_t if tile else 1)
    count, parts = pieces_of(call, span)
    args = {
        "x": rows(x),
        "weight": State(weight, constant(host.row_stride(weight, 0)), constant(host.channel_stride(weight))),
        "state": rows(call.state),
        "positions": rows(call.segment_pos),
        "cu_seqlens": call.cu_seqlens,
        "T": x.shape[1],
        "parts": parts,
    }
    code = _activation.CODES[call.activation]
    sizes = ConvSizes(x.shape[2], weight.shape[0], host.wide(x.dtype), span, config.block_t, config.block_d, code)
    return Launch(
        kernel=kernel,
        grid=(count * triton.cdiv(sizes.D, config.block_d),),
        args=args | own,
        constexprs={"SIZES": sizes},
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=host.load_bits(loads, share // (32 * config.num_warps))),
    )


def forward(kernel: Any, tile: bool = False) -> Callable[[Call, dict[str, Any], Any], list[Launch]]:
    """``launches`` of a forward kernel, which allocate y and the new state. tile: as in ``launch``."""

    def launches(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
        x, kept = call.x, call.weight.shape[0] - 1
        own = {
            "bias": bias_of(call),
            "residual": rows(call.residual),
            "y": host.empty(outputs, "y", x, *x.shape, dtype=x.dtype),
            "new_state": host.empty(
                outputs, "new_state", x, rows_of(x.shape[0], call.cu_seqlens), kept, x.shape[2], dtype=x.dtype
            ),
        }
        return [launch(kernel, call, config, tile, (x,), **own)]

    return launches


MOST_TAPS = 16
"""More would not fit into registers beside the rows loaded ahead, and code grows with their number."""


def too_many_taps(case: Case) -> str | None:
    """Why taps cannot be unrolled, if so."""
    return f"{case['K']} taps are more than the {MOST_TAPS} that are unrolled" if case["K"] > MOST_TAPS else None


def unfit(case: Case, device: Device, config: Any, tile: bool = False) -> str | None:
    """Why a kernel cannot run, or would only waste its threads, which own channels or share a ``tile``.

    A piece of time is a whole number of tiles, one where there is no ``span``.
    """
    if getattr(config, "span", 0) % config.block_t:
        return f"span={config.span} is not a multiple of block_t={config.block_t}"
    rows = config.block_t if tile else None
    return too_many_taps(case) or host.unfit(case, device, config.block_d, config.num_warps, rows)
