"""Time split over programs in three phases, for long sequences of few blocks; from the last step to the first.

    1. reduce: (P, S) of every chunk but the one visited last, c_out = P c_in + S    reads dh, a
    2. carry:  c_out of every chunk                                                 a block-diagonal scan over chunks
    3. scan:   g_t = dh_t + c_{t+1},  c_t = m_t A_t^T g_t,  dx_t = g_t,  dA_t = m_t g_t h_{t-1}^T

The state that travels is c, not g, so a is not shifted against dh. Phase 1 multiplies matrices, n times the
multiply-adds of the scan; see block_diagonal_scan/triton.chunked for when that pays. Phase 3 takes the chunks in the
opposite order, so that what phase 1 read last, and the cache still holds, is read first.

Bytes per element of h, in data elements: (n + 1) + (2 n + 3), down to 2 n + 3 where dh and a fit in the last-level
cache; plus 2 n + 4 accumulators per chunk and channel.
Source: as block_diagonal_scan/triton.chunked, by the chain rule.
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
from griffin_kernels.ops._triton.scan import load_state
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.block_diagonal_scan import _triton as forward
from griffin_kernels.ops.block_diagonal_scan import _triton_chunks
from griffin_kernels.ops.block_diagonal_scan._triton_jit import as_vectors, vector_columns
from griffin_kernels.ops.block_diagonal_scan_bwd import _triton, triton_sequential
from griffin_kernels.ops.block_diagonal_scan_bwd._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: steps loaded ahead. block_a: elements of a per step and program of phase 3."""

    chunk: int = 64
    block_t: int = 8
    block_a: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def block_diagonal_scan_bwd_chunks(
    dh,
    dh_last,
    a,
    h,
    h0,
    reset,
    enter,
    leave,
    result,
    dx,
    da,
    dh0,
    T,
    chunks,
    dh_batch,
    a_batch,
    h_batch,
    reset_batch,
    dh_last_row,
    h0_row,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_BLOCK,
    A_ROW: tl.constexpr,
    A_COLUMN: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Phase 3. result: [B,chunks,D] states that leave all chunks but the last. Grid: B * (chunks+1) * groups of H."""
    SIGN: tl.constexpr = 1 if REVERSE else -1
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
    first = begin if REVERSE else T - 1 - begin
    state = dh_last
    before = h0
    if enter is not None:
        state = None
        before = None
        enter += first
        leave += first
    if reset is not None:
        reset += batch * reset_batch + first * (SIGN * far(RESET_STEP))
    start = entering(result, state, batch, chunk, chunks, dh_last_row, columns, inside, D, DH_LAST_CHANNEL, ACC, FLAT)
    carry = scan_rows(
        dh + (batch * dh_batch + first * (SIGN * far(DH_STEP))),
        a + (batch * a_batch + first * (SIGN * far(A_STEP))),
        h + (batch * h_batch + first * (SIGN * far(H_STEP))),
        reset,
        enter,
        leave,
        dx + (batch * T + first) * D,
        da + (batch * T + first) * (D * SIZE),
        dh_last,
        dh_last_row,
        h0,
        h0_row,
        dh0,
        as_vectors(start, N, BLOCK_H),
        load_state(before, batch, h0_row, columns, inside & (chunk == chunks), H0_CHANNEL, ACC, FLAT),
        block,
        tl.cast(tl.minimum(T - begin, CHUNK), tl.int32),
        tl.cast(T - begin, tl.int32),
        H=H,
        SIZE=SIZE,
        N=N,
        DH_STEP=far(DH_STEP),
        DH_CHANNEL=DH_CHANNEL,
        A_STEP=far(A_STEP),
        A_BLOCK=far(A_BLOCK),
        A_ROW=A_ROW,
        A_COLUMN=A_COLUMN,
        H_STEP=far(H_STEP),
        H_CHANNEL=H_CHANNEL,
        RESET_STEP=far(RESET_STEP),
        DH_LAST_CHANNEL=DH_LAST_CHANNEL,
        H0_CHANNEL=H0_CHANNEL,
        REVERSE=REVERSE,
        BLOCK_T=BLOCK_T,
        BLOCK_H=BLOCK_H,
    )
    if dh0 is not None and enter is None:
        tl.store(dh0 + batch * D + columns, tl.reshape(carry, (FLAT,)), mask=inside & (chunk == chunks))


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    _, args, constexprs = _triton.scan_arguments(inputs, outputs)
    dh, dh_last, a, reset, reverse = (inputs[name] for name in ("dh", "dh_last", "a", "reset", "reverse"))
    batch, time, width = dh.shape
    enter, leave, marks = mark(
        args.pop("cu_seqlens"), dh_last, outputs["dh0"], time, width, not reverse, constexprs["ACC"]
    )
    result, before = _triton_chunks.reduce(
        dh, a, dh_last, reset, enter, reverse=not reverse, backward=True, chunk=config.chunk
    )
    chunks = triton.cdiv(time, config.chunk)
    tile = forward.tile_constexprs(a, config.block_a)
    scan = Launch(
        kernel=block_diagonal_scan_bwd_chunks,
        grid=(batch * chunks * triton.cdiv(tile["H"], tile["BLOCK_H"]),),
        args=args | {"enter": enter, "leave": leave, "result": result, "chunks": chunks - 1},
        constexprs=constexprs | tile | {"CHUNK": config.chunk, "BLOCK_T": config.block_t},
        num_warps=config.num_warps,
        tile=config.block_t * tile["BLOCK_H"] * tile["SIZE"],
        claims=Claims(load_bits=forward.load_bits(a, config.block_a, config.num_warps)),
    )
    return [*marks, *before, scan]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return forward.unfit(case, device, config.block_a, config.num_warps) or _triton_chunks.unfit(case)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if forward.starves(case, device, triton_sequential.Config.block_t, streams=2) else 15


def traffic(case: Case, config: Config) -> int:
    """dh and a read twice but for one chunk, h read, dx and dA written."""
    return _triton_chunks.traffic(case, config.chunk, matrices=2, vectors=3)


VARIANT = Variant(
    op="block_diagonal_scan_bwd",
    name="triton.chunked",
    summary="time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256), "block_t": (4, 8), "block_a": (256, 512), "num_warps": (1, 2)},
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
