"""A program per span of rows: each row in registers, the weights' sums too, which a second launch adds up.

    dx = r (g - x r^2 mean(g x)) + ds,  dweight += dy r x,  g = dy (weight_offset + weight)

The two sums of a row are taken across the program; its x and dy stay where they are for what depends on these, and
weights come from L1, since the sums need the registers. Every program leaves a row of float32 sums, and those are added
in order: no atomics, so that equal calls give equal bits. A row of more than MOST channels a thread is read twice, and
its sums are kept in memory, which is the caches.

Bytes per element: the ideal three data elements (6 in bf16, 12 in fp32), four with ds, and 8 programs / (B T) for sums.
Bound by memory bandwidth.
Source: the chain rule on the equations in rms_norm/op.py; Liger-Kernel has the same form, of one program per processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.tensors import dense, rows
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.rms_norm import triton_rows as forward
from griffin_kernels.ops.rms_norm._triton_norm import (
    factor_of,
    launch_rows,
    load_piece,
    load_pieces,
    row_of,
    scale_of,
    store_piece,
)
from griffin_kernels.ops.rms_norm_bwd.op import Call

MOST = 32
"""Channels of a row that a thread keeps, at most: of x, dy and the sums each."""
REDUCE_ROWS = 64
REDUCE_D = 32


@dataclass(frozen=True)
class Config(forward.Config):
    """As in the forward op. programs: at most so many, each of which leaves a row of sums."""

    block_d: int = 1024
    num_warps: int = 4
    programs: int = 512


@triton.jit
def gradient_row(dy, ds, x, weight, dx, sums, SIZES: tl.constexpr):
    """dx of a row, stored. Gives ``sums``, a tuple of pieces, to which the row has added."""
    D: tl.constexpr = SIZES.D
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    values = load_pieces(x, SIZES)
    grads = load_pieces(dy, SIZES)
    squares = tl.zeros((BLOCK_D,), dtype=SIZES.ACC)
    products = tl.zeros((BLOCK_D,), dtype=SIZES.ACC)
    for p in tl.static_range(len(values)):
        value = values[p].to(SIZES.ACC)
        factor = factor_of(load_piece(weight, p * BLOCK_D, SIZES, (p + 1) * BLOCK_D > D), SIZES)
        squares += value * value
        products += value * (grads[p].to(SIZES.ACC) * factor)
    scale = scale_of(squares, SIZES)
    along = scale * (tl.sum(products, axis=0) / D)
    grown = ()
    for p in tl.static_range(len(values)):
        normed = values[p].to(SIZES.ACC) * scale
        grad = grads[p].to(SIZES.ACC)
        factor = factor_of(load_piece(weight, p * BLOCK_D, SIZES, (p + 1) * BLOCK_D > D), SIZES)
        result = scale * (grad * factor - normed * along)
        if ds is not None:
            result += load_piece(ds, p * BLOCK_D, SIZES, (p + 1) * BLOCK_D > D).to(SIZES.ACC)
        store_piece(dx, p * BLOCK_D, result, SIZES, (p + 1) * BLOCK_D > D)
        grown += (sums[p] + grad * normed,)
    return grown


@triton.jit
def gradient_row_twice(dy, ds, x, weight, dx, own, begun, SIZES: tl.constexpr):
    """The same of a row that is read twice. own: the program's sums in memory, which hold something if ``begun``."""
    D: tl.constexpr = SIZES.D
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    squares = tl.zeros((BLOCK_D,), dtype=SIZES.ACC)
    products = tl.zeros((BLOCK_D,), dtype=SIZES.ACC)
    for first in range(0, D, BLOCK_D):
        value = load_piece(x, first, SIZES, True).to(SIZES.ACC)
        factor = factor_of(load_piece(weight, first, SIZES, True), SIZES)
        squares += value * value
        products += value * (load_piece(dy, first, SIZES, True).to(SIZES.ACC) * factor)
    scale = scale_of(squares, SIZES)
    along = scale * (tl.sum(products, axis=0) / D)
    for first in range(0, D, BLOCK_D):
        normed = load_piece(x, first, SIZES, True).to(SIZES.ACC) * scale
        grad = load_piece(dy, first, SIZES, True).to(SIZES.ACC)
        factor = factor_of(load_piece(weight, first, SIZES, True), SIZES)
        result = scale * (grad * factor - normed * along)
        if ds is not None:
            result += load_piece(ds, first, SIZES, True).to(SIZES.ACC)
        store_piece(dx, first, result, SIZES, True)
        columns = first + tl.arange(0, BLOCK_D)
        before = tl.load(own.at + columns, mask=(columns < D) & begun, other=0.0)
        store_piece(own, first, before + grad * normed, SIZES, True)
    tl.debug_barrier()  # the next row reads these sums, and not every thread its own


@triton.jit(do_not_specialize=["T", "total", "span"])
def rms_norm_bwd_rows(dy, ds, x, weight, dx, partial, T, total, span, SIZES: tl.constexpr):
    """dy, ds, x, dx: [B,T,D]; ds may be None; weight [D]; partial [programs,D]. total: B * T.

    Grid: programs, each of ``span`` rows.
    """
    D: tl.constexpr = SIZES.D
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    begin = tl.program_id(0) * span
    end = tl.minimum(begin + span, total)
    own = dense(partial, tl.cast(tl.program_id(0), tl.int64), D, 1)
    if SIZES.KEPT:
        sums = ()
        for _ in tl.static_range((D + BLOCK_D - 1) // BLOCK_D):
            sums += (tl.zeros((BLOCK_D,), dtype=SIZES.ACC),)
        for place in range(begin, end):
            into = dense(dx, tl.cast(place, tl.int64), D, 1)
            source, upstream = row_of(x, place, T), row_of(dy, place, T)
            sums = gradient_row(upstream, row_of(ds, place, T), source, weight, into, sums, SIZES)
        for p in tl.static_range(len(sums)):
            store_piece(own, p * BLOCK_D, sums[p], SIZES, (p + 1) * BLOCK_D > D)
    else:
        for place in range(begin, end):
            into = dense(dx, tl.cast(place, tl.int64), D, 1)
            source, upstream = row_of(x, place, T), row_of(dy, place, T)
            gradient_row_twice(upstream, row_of(ds, place, T), source, weight, into, own, place > begin, SIZES)


@triton.jit(do_not_specialize=["programs"])
def rms_norm_bwd_reduce(partial, dweight, programs, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """partial [programs,D] -> dweight [D]. Grid: ceil(D / block_d)."""
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    each = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK_D), dtype=partial.dtype.element_ty)
    for first in range(0, programs, ROWS):
        place = (first + each)[:, None]
        row = partial + place.to(tl.int64) * D + columns[None, :]
        total += tl.load(row, mask=(place < programs) & inside[None, :], other=0.0)
    value = tl.sum(total, axis=0)
    tl.store(dweight + columns, value.to(dweight.dtype.element_ty), mask=inside)


def _spans(rows_in_all: int, most: int) -> tuple[int, int]:
    """(programs, rows of each): at most ``most`` programs, none without rows."""
    span = triton.cdiv(rows_in_all, most)
    return triton.cdiv(rows_in_all, span), span


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Spans of rows, then the sum over programs; allocates both outputs."""
    x, ds, width = call.x, call.ds, call.x.shape[2]
    total = x.shape[0] * x.shape[1]
    programs, span = _spans(total, config.programs)
    partial = torch.empty((programs, width), dtype=accumulator(x.dtype), device=x.device)
    args = {
        "dy": rows(call.dy),
        "ds": rows(ds),
        "x": rows(x),
        "dx": host.empty(outputs, "dx", x, *x.shape, dtype=x.dtype),
        "partial": partial,
        "total": total,
        "span": span,
    }
    loads = (x, call.dy) if ds is None else (x, call.dy, ds)
    reduce = Launch(
        kernel=rms_norm_bwd_reduce,
        grid=(triton.cdiv(width, REDUCE_D),),
        args={
            "partial": partial,
            "dweight": host.empty(outputs, "dweight", x, width, dtype=call.weight.dtype),
            "programs": programs,
        },
        constexprs={"D": width, "ROWS": REDUCE_ROWS, "BLOCK_D": REDUCE_D},
        num_warps=4,
        tile=REDUCE_ROWS * REDUCE_D,
    )
    return [launch_rows(rms_norm_bwd_rows, programs, call, config, MOST, args, loads), reduce]


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: dy, x and ds read, dx written, a row of sums per program written and read."""
    programs, _ = _spans(case["B"] * case["T"], config.programs)
    streams = 4 if "residual" in case.flags else 3
    sums = 2 * programs * case["D"] * accumulator(case.torch_dtype).itemsize
    return streams * case["B"] * case["T"] * case["D"] * case.bytes_per_element() + sums


VARIANT = backward_of(
    forward.VARIANT,
    summary="a program per span of rows, rows and the weights' sums in registers",
    config=Config,
    axes={"block_d": (64, 256, 512, 1024, 2048), "num_warps": (1, 2, 4, 8), "programs": (128, 256, 512, 1024)},
    launches=launches,
    traffic=traffic,
)
