"""Time split over programs in three phases, for long sequences of few blocks.

    1. reduce: (P, S) of every chunk but the last, h_out = P h_in + S       reads x, a; writes a matrix and a vector
    2. carry:  h_out of every chunk                                        a block-diagonal scan over chunks
    3. scan:   h_t = A_t h_{t-1} + x_t from the right h_in                   reads x, a; writes h

Phase 1 multiplies matrices: n times the multiply-adds of the scan, in float32 on the vector units. That is nothing for
n = 2 and 4; for n = 16, where one matrix has 256 elements and every step 4096 products, arithmetic binds phase 1 and
splitting pays only where there are very few blocks. Phase 3 takes the chunks in the opposite order, so that what phase
1 read last, and the cache still holds, is read first.

Bytes per element of h, in data elements: (n + 1) + (n + 2), down to n + 2 where x and a fit in the last-level cache;
plus 2 n + 4 accumulators per chunk and channel. Packed sequences add a mark per step and end.
Source: as linear_scan/triton.chunked, with matrices in place of factors: Blelloch, "Prefix sums and their applications"
(1990), section 1.4.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton.chunks import entering, mark
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.block_diagonal_scan import _triton, _triton_chunks, triton_sequential
from griffin_kernels.ops.block_diagonal_scan._triton_jit import as_vectors, vector_columns
from griffin_kernels.ops.block_diagonal_scan._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: steps loaded ahead. block_a: elements of a per step and program of phase 3."""

    chunk: int = 64
    block_t: int = 16
    block_a: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def block_diagonal_scan_chunks(
    x,
    a,
    h0,
    reset,
    enter,
    leave,
    result,
    h,
    h_last,
    T,
    chunks,
    x_batch,
    a_batch,
    reset_batch,
    h0_row,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_BLOCK,
    A_ROW: tl.constexpr,
    A_COLUMN: tl.constexpr,
    RESET_STEP,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Phase 3. result: [B,chunks,D] states that leave all chunks but the last. Grid: B * (chunks+1) * groups of H."""
    SIGN: tl.constexpr = -1 if REVERSE else 1
    D: tl.constexpr = H * SIZE
    GROUPS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    FLAT: tl.constexpr = BLOCK_H * N
    place = tl.num_programs(0) - 1 - tl.program_id(0)
    block = (place % GROUPS) * BLOCK_H
    columns, inside = vector_columns(block, H, SIZE, N, BLOCK_H)
    piece = place // GROUPS
    batch = tl.cast(piece // (chunks + 1), tl.int64)
    chunk = tl.cast(piece % (chunks + 1), tl.int64)
    begin = chunk * CHUNK
    first = T - 1 - begin if REVERSE else begin
    state = h0
    if enter is not None:
        state = None
        enter += first
        leave += first
    if reset is not None:
        reset += batch * reset_batch + first * (SIGN * far(RESET_STEP))
    start = entering(result, state, batch, chunk, chunks, h0_row, columns, inside, D, H0_CHANNEL, ACC, FLAT)
    carry = scan_rows(
        x + (batch * x_batch + first * (SIGN * far(X_STEP))),
        a + (batch * a_batch + first * (SIGN * far(A_STEP))),
        reset,
        enter,
        leave,
        h + (batch * T + first) * D,
        h0,
        h0_row,
        h_last,
        as_vectors(start, N, BLOCK_H),
        block,
        tl.cast(tl.minimum(T - begin, CHUNK), tl.int32),
        H=H,
        SIZE=SIZE,
        N=N,
        X_STEP=far(X_STEP),
        X_CHANNEL=X_CHANNEL,
        A_STEP=far(A_STEP),
        A_BLOCK=far(A_BLOCK),
        A_ROW=A_ROW,
        A_COLUMN=A_COLUMN,
        RESET_STEP=far(RESET_STEP),
        H0_CHANNEL=H0_CHANNEL,
        REVERSE=REVERSE,
        BLOCK_T=BLOCK_T,
        BLOCK_H=BLOCK_H,
    )
    if enter is None:
        tl.store(h_last + batch * D + columns, tl.reshape(carry, (FLAT,)), mask=inside & (chunk == chunks))


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    _, args, constexprs = _triton.scan_arguments(inputs, outputs)
    x, a, h0, reset, reverse = (inputs[name] for name in ("x", "a", "h0", "reset", "reverse"))
    batch, time, width = x.shape
    enter, leave, marks = mark(args.pop("cu_seqlens"), h0, outputs["h_last"], time, width, reverse, constexprs["ACC"])
    result, before = _triton_chunks.reduce(x, a, h0, reset, enter, reverse=reverse, backward=False, chunk=config.chunk)
    chunks = triton.cdiv(time, config.chunk)
    tile = _triton.tile_constexprs(a, config.block_a)
    scan = Launch(
        kernel=block_diagonal_scan_chunks,
        grid=(batch * chunks * triton.cdiv(tile["H"], tile["BLOCK_H"]),),
        args=args | {"enter": enter, "leave": leave, "result": result, "chunks": chunks - 1},
        constexprs=constexprs | tile | {"CHUNK": config.chunk, "BLOCK_T": config.block_t},
        num_warps=config.num_warps,
        tile=config.block_t * tile["BLOCK_H"] * tile["SIZE"],
        claims=Claims(load_bits=_triton.load_bits(a, config.block_a, config.num_warps)),
    )
    return [*marks, *before, scan]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return _triton.unfit(case, device, config.block_a, config.num_warps) or _triton_chunks.unfit(case)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if _triton.starves(case, device, triton_sequential.Config.block_t, streams=1) else 15


def traffic(case: Case, config: Config) -> int:
    """x and a read twice but for the last chunk, h written."""
    return _triton_chunks.traffic(case, config.chunk, matrices=1, vectors=2)


VARIANT = Variant(
    op="block_diagonal_scan",
    name="triton.chunked",
    summary="time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256), "block_t": (8, 16), "block_a": (256, 512), "num_warps": (1, 2)},
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
