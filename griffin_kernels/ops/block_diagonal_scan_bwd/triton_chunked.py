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

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton.chunks import ChunkedInputs, entering_chunk, marked
from griffin_kernels.ops._triton.tensors import load_state, marks_at, store_state
from griffin_kernels.ops.block_diagonal_scan import _block_launches as forward
from griffin_kernels.ops.block_diagonal_scan import _triton_block_chunks
from griffin_kernels.ops.block_diagonal_scan._triton_blocks import as_vectors, own_blocks
from griffin_kernels.ops.block_diagonal_scan_bwd import _block_gradient_launches, triton_sequential
from griffin_kernels.ops.block_diagonal_scan_bwd._triton_block_scan_gradient import scan_rows, streams_at
from griffin_kernels.ops.block_diagonal_scan_bwd.op import Call


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: steps loaded ahead. block_a: elements of a per step and program of phase 3."""

    chunk: int = 64
    block_t: int = 8
    block_a: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def block_diagonal_scan_bwd_chunks(
    given,
    dh_last,
    h0,
    marks,
    result,
    dh0,
    T,
    chunks,
    tile,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Phase 3. result: [B,chunks,D] states that leave all chunks but the last. Grid: B * (chunks+1) * groups of H.

    dh_last, dh0: None with marks, which have them.
    """
    SIGN: tl.constexpr = 1 if REVERSE else -1
    D: tl.constexpr = tile.blocks * tile.size
    piece, own = own_blocks(tl.num_programs(0) - 1 - tl.program_id(0), tile, given.a)
    batch = tl.cast(piece // (chunks + 1), tl.int64)
    chunk = tl.cast(piece % (chunks + 1), tl.int64)
    begin = chunk * CHUNK
    first = begin if REVERSE else T - 1 - begin
    streams = streams_at(given, batch, first, T, tile, SIGN)
    carry = as_vectors(entering_chunk(result, dh_last, batch, chunk, chunks, own.vectors, D, ACC), tile)
    before_first = load_state(h0 if marks is None else None, batch, own.vectors, ACC, chunk == chunks)
    marks = marks_at(marks, first, SIGN)
    steps = tl.cast(tl.minimum(T - begin, CHUNK), tl.int32)
    remaining = tl.cast(T - begin, tl.int32)
    carry = scan_rows(streams, marks, h0, carry, before_first, own, steps, remaining, BLOCK_T)
    store_state(dh0, batch, tl.reshape(carry, before_first.shape), own.vectors, chunk == chunks)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    _, args, constexprs = _block_gradient_launches.scan_arguments(call, outputs)
    batch, time, width = call.dh.shape
    marks, begin = marked(
        args.pop("cu_seqlens"), call.dh_last, outputs["dh0"], time, width, not call.reverse, constexprs["ACC"]
    )
    source = ChunkedInputs(call.dh, call.a, config.chunk, not call.reverse, True)
    result, before = _triton_block_chunks.reduce(source, call.dh_last, call.reset, marks)
    count = triton.cdiv(time, config.chunk)
    if marks is not None:
        args |= {"dh_last": None, "dh0": None}
    args |= {"marks": marks, "result": result, "chunks": count - 1}
    constexprs |= {"CHUNK": config.chunk}
    scan = forward.launch(block_diagonal_scan_bwd_chunks, batch * count, call.a, config, args, constexprs)
    return [*begin, *before, scan]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return forward.unfit(case, device, config.block_a, config.num_warps) or _triton_block_chunks.unfit(case)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if forward.splits(case, device, triton_sequential.Config(), 0.65) else 15


def traffic(case: Case, config: Config) -> int:
    """dh and a read twice but for one chunk, h read, dx and dA written."""
    return _triton_block_chunks.traffic(case, config.chunk, matrices=2, vectors=3)


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
