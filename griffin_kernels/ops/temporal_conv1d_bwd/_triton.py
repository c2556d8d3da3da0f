"""What the Triton gradients of the convolution share: arguments, and the sum of the weights' gradients over pieces.

Every piece of time leaves K+1 rows of sums in the accumulator's dtype, those of w_0 .. w_{K-1} (weight's rows from the
last to the first) and of the bias. A second launch adds them up in the order of the pieces: no atomics, so that equal
calls give equal bits.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from griffin_kernels.contract import Case, Inputs, accumulator
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host as scan
from griffin_kernels.ops.temporal_conv1d import _triton as forward

REDUCE_ROWS = 32
REDUCE_D = 64


@triton.jit
def first_kept_step(positions, length, TAPS: tl.constexpr, POSITION_STEP):
    """The first step of a sequence, below 0 in its state, that its new state holds."""
    first = length - (TAPS - 1)
    if positions is not None:
        last = tl.load(positions + (length - 1) * POSITION_STEP, mask=length > 0, other=TAPS)
        first = tl.maximum(first, length - 1 - last)
    return first


@triton.jit
def store_sums(sums, partial, place, columns, inside, D: tl.constexpr, TAPS: tl.constexpr):
    """The tuple of K+1 sums [block_d] of one piece, to its rows of partial [pieces,K+1,D]."""
    base = partial + tl.cast(place, tl.int64) * ((TAPS + 1) * D) + columns
    for k in tl.static_range(TAPS + 1):
        tl.store(base + k * D, sums[k], mask=inside)


@triton.jit(do_not_specialize=["pieces"])
def temporal_conv1d_bwd_reduce(
    partial,
    dweight,
    dbias,
    pieces,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """partial [pieces,K+1,D] -> dweight [K,D], dbias [D]. Grid: (K+1) * ceil(D / BLOCK_D)."""
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    k = tl.program_id(0) // BLOCKS
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    rows = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK_D), dtype=ACC)
    for first in range(0, pieces, ROWS):
        place = (first + rows)[:, None]
        row = partial + place.to(tl.int64) * ((TAPS + 1) * D) + k * D + columns[None, :]
        total += tl.load(row, mask=(place < pieces) & inside[None, :], other=0.0)
    value = tl.sum(total, axis=0)
    if k < TAPS:
        tl.store(dweight + (TAPS - 1 - k) * D + columns, value.to(dweight.dtype.element_ty), mask=inside)
    else:
        tl.store(dbias + columns, value.to(dbias.dtype.element_ty), mask=inside)


def arguments(inputs: Inputs, outputs: dict[str, Any], span: int) -> tuple[int, dict[str, Any], dict[str, Any], Launch]:
    """(pieces in all, arguments and constexprs of the kernel over pieces, the sum over them); allocates all outputs."""
    x, dy, dnew_state, state = (inputs[name] for name in ("x", "dy", "dnew_state", "state"))
    count, args, constexprs = forward.shared_arguments(inputs, span)
    width, taps = constexprs["D"], constexprs["TAPS"]
    partial = torch.empty((count, taps + 1, width), dtype=accumulator(x.dtype), device=x.device)
    if state is None:
        outputs["dstate"] = None
    args |= {
        "dy": dy,
        "dnew_state": dnew_state,
        "dx": scan.empty(outputs, "dx", x, *x.shape, dtype=x.dtype),
        "dstate": None if state is None else scan.empty(outputs, "dstate", x, *state.shape, dtype=x.dtype),
        "partial": partial,
        "dy_batch": scan.row_stride(dy, 0),
        "leaving_batch": scan.row_stride(dnew_state, 0),
    }
    constexprs |= {
        "DY_STEP": scan.known_stride(dy, 1),
        "DY_CHANNEL": scan.channel_stride(dy),
        "LEAVING_STEP": scan.known_stride(dnew_state, 1),
        "LEAVING_CHANNEL": scan.channel_stride(dnew_state),
    }
    reduce = Launch(
        kernel=temporal_conv1d_bwd_reduce,
        grid=((taps + 1) * triton.cdiv(width, REDUCE_D),),
        args={
            "partial": partial,
            "dweight": scan.empty(outputs, "dweight", x, taps, width, dtype=x.dtype),
            "dbias": scan.empty(outputs, "dbias", x, width, dtype=x.dtype),
            "pieces": count,
        },
        constexprs={
            "D": width,
            "TAPS": taps,
            "ACC": constexprs["ACC"],
            "ROWS": REDUCE_ROWS,
            "BLOCK_D": REDUCE_D,
        },
        num_warps=4,
        tile=REDUCE_ROWS * REDUCE_D,
    )
    return count, args, constexprs, reduce


def traffic(case: Case, span: int) -> int:
    """Bytes moved: dy and x read, dx written, K+1 sums per piece written and read."""
    pieces = case["B"] * -(-case["T"] // span) + (case["N"] if "packed" in case.flags else 0)
    sums = 2 * pieces * (case["K"] + 1) * case["D"] * accumulator(case.torch_dtype).itemsize
    return 3 * case["B"] * case["T"] * case["D"] * case.bytes_per_element() + sums
