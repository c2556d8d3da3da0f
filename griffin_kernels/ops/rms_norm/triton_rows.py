"""A program per row: the row in registers, its squares summed across the program, the row scaled and written.

    s = x + residual;   y = s / sqrt(mean(s^2) + eps) * (weight_offset + weight)

All loads of a row are issued before the first is used, 16 bytes a thread in bf16. A row of more than MOST channels a
thread is read twice, the second time from the caches.

Bytes per element: the ideal two data elements (4 in bf16, 8 in fp32), four with a residual; weights come from L2. Bound
by memory bandwidth where rows are many, by latency and launch where they are few.
Source: the same form as the norms of Liger-Kernel, flash-linear-attention and vLLM (``fused_add_rms_norm``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Variant
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.tensors import dense, rows
from griffin_kernels.ops.rms_norm._triton_norm import (
    factor_of,
    launch_rows,
    load_piece,
    load_pieces,
    row_of,
    scale_of,
    store_piece,
)
from griffin_kernels.ops.rms_norm.op import Call

MOST = 96
"""Channels of a row that a thread keeps, at most."""


@dataclass(frozen=True)
class Config:
    """block_d: channels that a program loads at a time; block_d / (32 num_warps) is a thread's share."""

    block_d: int = 512
    num_warps: int = 2


@triton.jit
def added_pieces(x, residual, s, SIZES: tl.constexpr):
    """x + residual as a tuple of pieces, rounded, which it stores to s."""
    D: tl.constexpr = SIZES.D
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    values = load_pieces(x, SIZES)
    more = load_pieces(residual, SIZES)
    sums = ()
    for p in tl.static_range(len(values)):
        total = (values[p].to(SIZES.ACC) + more[p].to(SIZES.ACC)).to(values[p].dtype)
        store_piece(s, p * BLOCK_D, total, SIZES, (p + 1) * BLOCK_D > D)
        sums += (total,)
    return sums


@triton.jit
def piece_again(x, residual, first, SIZES: tl.constexpr):
    """A masked piece of x + residual, or of x, as it was rounded, in the accumulator's dtype."""
    value = load_piece(x, first, SIZES, True)
    if residual is not None:
        more = load_piece(residual, first, SIZES, True)
        value = (value.to(SIZES.ACC) + more.to(SIZES.ACC)).to(value.dtype)
    return value


@triton.jit(do_not_specialize=["T"])
def rms_norm_rows(x, residual, weight, y, s, T, SIZES: tl.constexpr):
    """x, residual, y, s: [B,T,D]; residual and s may be None; weight [D]. Grid: B * T."""
    D: tl.constexpr = SIZES.D
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    place = tl.program_id(0)
    source = row_of(x, place, T)
    added = row_of(residual, place, T)
    into = dense(y, tl.cast(place, tl.int64), D, 1)
    total = dense(s, tl.cast(place, tl.int64), D, 1)
    squares = tl.zeros((BLOCK_D,), dtype=SIZES.ACC)
    if SIZES.KEPT:
        if residual is not None:
            values = added_pieces(source, added, total, SIZES)
        else:
            values = load_pieces(source, SIZES)
        for p in tl.static_range(len(values)):
            value = values[p].to(SIZES.ACC)
            squares += value * value
        scale = scale_of(squares, SIZES)
        for p in tl.static_range(len(values)):
            factor = factor_of(load_piece(weight, p * BLOCK_D, SIZES, (p + 1) * BLOCK_D > D), SIZES)
            result = values[p].to(SIZES.ACC) * scale * factor
            store_piece(into, p * BLOCK_D, result, SIZES, (p + 1) * BLOCK_D > D)
    else:
        for first in range(0, D, BLOCK_D):
            value = piece_again(source, added, first, SIZES)
            if residual is not None:
                store_piece(total, first, value, SIZES, True)
            wide = value.to(SIZES.ACC)
            squares += wide * wide
        scale = scale_of(squares, SIZES)
        for first in range(0, D, BLOCK_D):
            value = piece_again(source, added, first, SIZES).to(SIZES.ACC)
            factor = factor_of(load_piece(weight, first, SIZES, True), SIZES)
            store_piece(into, first, value * scale * factor, SIZES, True)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """A program for every row; allocates y, and s where there is a residual."""
    x, residual = call.x, call.residual
    outputs["s"] = None if residual is None else host.empty(outputs, "s", x, *x.shape, dtype=x.dtype)
    args = {
        "x": rows(x),
        "residual": rows(residual),
        "y": host.empty(outputs, "y", x, *x.shape, dtype=x.dtype),
        "s": outputs["s"],
    }
    loads = (x,) if residual is None else (x, residual)
    return [launch_rows(rms_norm_rows, x.shape[0] * x.shape[1], call, config, MOST, args, loads)]


VARIANT = Variant(
    op="rms_norm",
    name="triton.rows",
    summary="a program per row, the row in registers",
    config=Config,
    axes={"block_d": (64, 128, 256, 512, 1024, 2048), "num_warps": (1, 2, 4, 8)},
    reject=lambda case, device, config: host.unfit(case, device, config.block_d, config.num_warps),
    rank=lambda case, device: 30,
    launches=launches,
)
