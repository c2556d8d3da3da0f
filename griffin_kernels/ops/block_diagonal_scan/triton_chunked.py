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

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton.chunks import ChunkedInputs, entering_chunk, own_chunk, phases_before
from griffin_kernels.ops._triton.tensors import marks_at, store_state
from griffin_kernels.ops.block_diagonal_scan import _block_launches, _triton_block_chunks, triton_sequential
from griffin_kernels.ops.block_diagonal_scan._triton_blocks import as_vectors, own_blocks
from griffin_kernels.ops.block_diagonal_scan.op import Call
from griffin_kernels.ops.linear_scan._scan_launches import scan_arguments
from griffin_kernels.ops.linear_scan._triton_scan import scan_rows, streams_at


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: steps loaded ahead. block_a: elements of a per step and program of phase 3."""

    chunk: int = 64
    block_t: int = 16
    block_a: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def block_diagonal_scan_chunks(
    given,
    h0,
    marks,
    result,
    h_last,
    T,
    chunks,
    tile,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Phase 3. result: [B,chunks,D] states that leave all chunks but the last. Grid: B * (chunks+1) * groups of H.

    h0, h_last: None with marks, which have them.
    """
    SIGN: tl.constexpr = -1 if REVERSE else 1
    D: tl.constexpr = tile.blocks * tile.size
    piece, own = own_blocks(tl.num_programs(0) - 1 - tl.program_id(0), tile, given.a)
    batch, chunk, begin, steps = own_chunk(piece, chunks + 1, T, CHUNK)
    first = T - 1 - begin if REVERSE else begin
    streams, marks = streams_at(given, batch, first, T, D, SIGN), marks_at(marks, first, SIGN)
    carry = as_vectors(entering_chunk(result, h0, batch, chunk, chunks, own.vectors, D, ACC), tile)
    carry = scan_rows(streams, marks, carry, own, steps, BLOCK_T)
    store_state(h_last, batch, tl.reshape(carry, own.vectors.columns.shape), own.vectors, chunk == chunks)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    _, args, constexprs = scan_arguments(call, outputs, _block_launches.matrices)
    source = ChunkedInputs(call.x, call.a, config.chunk, call.reverse, False)
    before, args = phases_before(_triton_block_chunks.reduce, source, call, outputs, args, ("h0", "h_last"))
    programs, constexprs = call.x.shape[0] * (args["chunks"] + 1), constexprs | {"CHUNK": config.chunk}
    return [*before, _block_launches.launch(block_diagonal_scan_chunks, programs, call.a, config, args, constexprs)]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return _block_launches.unfit(case, device, config.block_a, config.num_warps) or _triton_block_chunks.unfit(case)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if _block_launches.splits(case, device, triton_sequential.Config(), 0.4) else 15


def traffic(case: Case, config: Config) -> int:
    """x and a read twice but for the last chunk, h written."""
    return _triton_block_chunks.traffic(case, config.chunk, matrices=1, vectors=2)


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
