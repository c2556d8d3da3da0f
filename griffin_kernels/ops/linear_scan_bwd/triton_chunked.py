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

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import chunks, host
from griffin_kernels.ops._triton.chunks import entering_chunk, own_chunk
from griffin_kernels.ops._triton.tensors import load_state, marks_at, own_channels, store_state
from griffin_kernels.ops.linear_scan_bwd import _scan_gradient_launches
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import scan_rows, streams_at
from griffin_kernels.ops.linear_scan_bwd.op import Call


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    chunk: int = 128
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_bwd_chunks(
    given,
    dh_last,
    h0,
    marks,
    result,
    dh0,
    T,
    chunks,
    D: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Phase 3. result: [B,chunks,D] states that leave all chunks but the last. Grid: B * (chunks+1) * blocks of D.

    dh_last, dh0: None with marks, which have them.
    """
    SIGN: tl.constexpr = 1 if REVERSE else -1
    piece, channels = own_channels(tl.num_programs(0) - 1 - tl.program_id(0), D, BLOCK_D)
    batch, chunk, begin, steps = own_chunk(piece, chunks + 1, T, CHUNK)
    first = begin if REVERSE else T - 1 - begin
    streams = streams_at(given, batch, first, T, D, SIGN)
    carry = entering_chunk(result, dh_last, batch, chunk, chunks, channels, D, ACC)
    before_first = load_state(h0 if marks is None else None, batch, channels, ACC, chunk == chunks)
    marks = marks_at(marks, first, SIGN)
    remaining = tl.cast(T - begin, tl.int32)
    carry = scan_rows(streams, marks, h0, carry, before_first, channels, steps, remaining, BLOCK_T)
    store_state(dh0, batch, carry, channels, chunk == chunks)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    _, args, constexprs = _scan_gradient_launches.scan_arguments(call, outputs)
    batch, time, width = call.a.shape
    marks, begin = chunks.marked(
        args.pop("cu_seqlens"), call.dh_last, outputs["dh0"], time, width, not call.reverse, constexprs["ACC"]
    )
    source = chunks.ChunkedInputs(call.dh, call.a, config.chunk, not call.reverse, True)
    result, before = chunks.reduce(source, call.dh_last, call.reset, marks, config)
    count = triton.cdiv(time, config.chunk)
    if marks is not None:
        args |= {"dh_last": None, "dh0": None}
    scan = Launch(
        kernel=linear_scan_bwd_chunks,
        grid=(batch * count * triton.cdiv(width, config.block_d),),
        args=args | {"marks": marks, "result": result, "chunks": count - 1},
        constexprs=constexprs | {"CHUNK": config.chunk, "BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=host.load_bits((call.dh, call.a, call.h), config.block_d // (32 * config.num_warps))),
    )
    return [*begin, *before, scan]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return host.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if host.starves(case, device, below=0.0099) else 15


def traffic(case: Case, config: Config) -> int:
    """dh and a read twice but for one chunk; two accumulators per chunk and channel passed on."""
    return chunks.traffic(case, config.chunk, streams=5)


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
