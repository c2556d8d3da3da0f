"""Time split over programs in three phases, for long sequences of few channels; from the last step to the first.

    1. reduce: (P, S) of every chunk but the one visited last, c_out = P c_in + S    reads dh, a
    2. carry:  c_in of every chunk                                                  reads and writes rows of chunks only
    3. scan:   g_t = dh_t + c_{t+1},  c_t = m_t a_t g_t,  dx_t = g_t,  da_t = m_t g_t h_{t-1}

The state that travels is c, not g, so a is not shifted against dh. Phase 3 takes the chunks in the opposite order, so
that what phase 1 read last, and the cache still holds, is read first.

Bytes per element, in data elements: 2 + 5 (bf16: 14, fp32: 28), down to the ideal 5 (10, 20) where dh and a fit in the
last-level cache; plus six accumulators per chunk and channel. Bound by memory bandwidth; the sequential form would be
bound by latency here.
Source: as linear_scan/triton.chunked, by the chain rule.
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
from griffin_kernels.ops._triton import chunks as _triton_chunks
from griffin_kernels.ops._triton import host as forward
from griffin_kernels.ops._triton.chunks import entering
from griffin_kernels.ops._triton.scan import load_state
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.linear_scan_bwd import _triton
from griffin_kernels.ops.linear_scan_bwd._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    chunk: int = 128
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_bwd_chunks(
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
    D: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Phase 3. result: [B,chunks,D] states that leave all chunks but the last. Grid: B * (chunks+1) * blocks of D."""
    SIGN: tl.constexpr = 1 if REVERSE else -1
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    place = tl.num_programs(0) - 1 - tl.program_id(0)
    columns = (place % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    piece = place // BLOCKS
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
    carry = scan_rows(
        dh + (batch * dh_batch + first * (SIGN * far(DH_STEP))),
        a + (batch * a_batch + first * (SIGN * far(A_STEP))),
        h + (batch * h_batch + first * (SIGN * far(H_STEP))),
        reset,
        enter,
        leave,
        dx + (batch * T + first) * D,
        da + (batch * T + first) * D,
        dh_last,
        dh_last_row,
        h0,
        h0_row,
        dh0,
        entering(result, state, batch, chunk, chunks, dh_last_row, columns, inside, D, DH_LAST_CHANNEL, ACC, BLOCK_D),
        load_state(before, batch, h0_row, columns, inside & (chunk == chunks), H0_CHANNEL, ACC, BLOCK_D),
        columns,
        inside,
        tl.cast(tl.minimum(T - begin, CHUNK), tl.int32),
        tl.cast(T - begin, tl.int32),
        D=D,
        DH_STEP=far(DH_STEP),
        DH_CHANNEL=DH_CHANNEL,
        A_STEP=far(A_STEP),
        A_CHANNEL=A_CHANNEL,
        H_STEP=far(H_STEP),
        H_CHANNEL=H_CHANNEL,
        RESET_STEP=far(RESET_STEP),
        DH_LAST_CHANNEL=DH_LAST_CHANNEL,
        H0_CHANNEL=H0_CHANNEL,
        REVERSE=REVERSE,
        BLOCK_T=BLOCK_T,
        BLOCK_D=BLOCK_D,
    )
    if dh0 is not None and enter is None:
        tl.store(dh0 + batch * D + columns, carry, mask=inside & (chunk == chunks))


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    _, args, constexprs = _triton.scan_arguments(inputs, outputs)
    names = ("dh", "dh_last", "a", "h", "reset", "reverse")
    dh, dh_last, a, h, reset, reverse = (inputs[name] for name in names)
    batch, time, width = a.shape
    enter, leave, marks = _triton_chunks.mark(
        args.pop("cu_seqlens"), dh_last, outputs["dh0"], time, width, not reverse, constexprs["ACC"]
    )
    result, before = _triton_chunks.reduce(
        dh,
        a,
        dh_last,
        reset,
        enter,
        reverse=not reverse,
        backward=True,
        chunk=config.chunk,
        block_t=config.block_t,
        block_d=config.block_d,
        num_warps=config.num_warps,
    )
    chunks = triton.cdiv(time, config.chunk)
    scan = Launch(
        kernel=linear_scan_bwd_chunks,
        grid=(batch * chunks * triton.cdiv(width, config.block_d),),
        args=args | {"enter": enter, "leave": leave, "result": result, "chunks": chunks - 1},
        constexprs=constexprs | {"CHUNK": config.chunk, "BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=forward.load_bits((dh, a, h), config.block_d // (32 * config.num_warps))),
    )
    return [*marks, *before, scan]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return forward.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if forward.starves(case, device, streams=3) else 15


def traffic(case: Case, config: Config) -> int:
    """dh and a read twice but for one chunk; two accumulators per chunk and channel passed on."""
    return _triton_chunks.traffic(case, config.chunk, streams=5)


VARIANT = Variant(
    op="linear_scan_bwd",
    name="triton.chunked",
    summary="time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256, 512), "block_t": (8, 16), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
