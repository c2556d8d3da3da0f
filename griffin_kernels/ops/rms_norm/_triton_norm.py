"""What the Triton forms of RMSNorm share, forward and backward: a row in pieces of BLOCK_D channels.

Where a row fits into a program's registers its pieces are a tuple, all loaded before the first is used. Longer rows are
read twice, the second time from the caches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import State, at


class NormSizes(NamedTuple):
    """What a kernel is compiled for: channels, accumulator, channels of a piece, whether a row stays in registers."""

    D: int
    ACC: Any
    BLOCK_D: int
    KEPT: bool
    EPS: float
    OFFSET: float


@bundling
def row_of(rows, place, T):
    """Row ``place`` of the B * T rows of a tensor; None of None."""
    return at(rows, tl.cast(place // T, tl.int64), tl.cast(place % T, tl.int64), 1)


@triton.jit
def load_piece(row, first, SIZES: tl.constexpr, MASKED: tl.constexpr):
    """Channels of a row, or of a parameter, from ``first`` on as [block_d]. MASKED: some are outside, and read 0."""
    columns = first + tl.arange(0, SIZES.BLOCK_D)
    pointers = row.at + columns * row.channel
    if MASKED:
        value = tl.load(pointers, mask=columns < SIZES.D, other=0.0)
    else:
        value = tl.load(pointers)
    return value


@triton.jit
def store_piece(row, first, value, SIZES: tl.constexpr, MASKED: tl.constexpr):
    """The same of an output's row, rounded to its dtype."""
    columns = first + tl.arange(0, SIZES.BLOCK_D)
    value = value.to(row.at.dtype.element_ty)
    if MASKED:
        tl.store(row.at + columns * row.channel, value, mask=columns < SIZES.D)
    else:
        tl.store(row.at + columns * row.channel, value)


@triton.jit
def load_pieces(row, SIZES: tl.constexpr):
    """A row, or a parameter, as a tuple of pieces."""
    D: tl.constexpr = SIZES.D
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    pieces = ()
    for p in tl.static_range((D + BLOCK_D - 1) // BLOCK_D):
        pieces += (load_piece(row, p * BLOCK_D, SIZES, (p + 1) * BLOCK_D > D),)
    return pieces


@triton.jit
def scale_of(squares, SIZES: tl.constexpr):
    """1 / sqrt(mean + eps) of a row from its squares [block_d]."""
    D: tl.constexpr = SIZES.D
    EPS: tl.constexpr = SIZES.EPS
    return 1.0 / tl.sqrt(tl.sum(squares, axis=0) / D + EPS)


@triton.jit
def factor_of(weight, SIZES: tl.constexpr):
    """weight_offset + weight of a piece."""
    OFFSET: tl.constexpr = SIZES.OFFSET
    return weight.to(SIZES.ACC) + OFFSET


def parameter(weight: Tensor) -> State:
    """The bundle of a parameter [D]."""
    return State(weight, constant(0), constant(host.channel_stride(weight)))


def launch_rows(
    kernel: Any, programs: int, call: Any, config: Any, most: int, args: dict[str, Any], loads: tuple[Tensor, ...]
) -> Launch:
    """A kernel of either direction. most: channels a thread keeps of a row. loads: the tensors read by rows."""
    width, share = call.x.shape[2], config.block_d // (32 * config.num_warps)
    kept = triton.cdiv(width, config.block_d) * share <= most
    sizes = NormSizes(width, host.wide(call.x.dtype), config.block_d, kept, call.eps, call.weight_offset)
    return Launch(
        kernel=kernel,
        grid=(programs,),
        args=args | {"weight": parameter(call.weight), "T": call.x.shape[1]},
        constexprs={"SIZES": sizes},
        num_warps=config.num_warps,
        tile=width if kept else config.block_d,
        claims=Claims(load_bits=host.load_bits(loads, share)),
    )
