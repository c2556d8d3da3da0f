"""Time split over programs in three phases, for long sequences of few channels.

    1. reduce: (P, S) of every chunk but the last, h_out = P h_in + S        reads x, a; writes two rows per chunk
    2. carry:  h_in of every chunk                                          reads and writes rows of chunks only
    3. scan:   h_t = a_t * h_{t-1} + x_t from the right h_in                  reads x, a; writes h

Phase 1 only reduces, so nothing is written and then corrected. Phase 3 takes the chunks in the opposite order, so that
what phase 1 read last, and the cache still holds, is read first.

Bytes per element, in data elements: 2 + 3 (bf16: 10, fp32: 20), down to the ideal 3 (6, 12) where x and a fit in the
last-level cache; plus six accumulators per chunk and channel (bf16, chunk 128: 0.2). Bound by memory bandwidth; the
sequential form would be bound by latency here. Packed sequences add a mark per step and end.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4; flash-linear-attention pull request 1160
has the same three phases for blocks of 128 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.chunks import ChunkedInputs, entering_chunk, own_chunk
from griffin_kernels.ops._triton.gating import gating_of
from griffin_kernels.ops._triton.tensors import State, marks_at, store_state
from griffin_kernels.ops.linear_scan import _triton_scan_chunks
from griffin_kernels.ops.linear_scan._scan_launches import scan_arguments
from griffin_kernels.ops.linear_scan._triton_scan import own_part, scan_rows, start_of, streams_at


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    chunk: int = 128
    block_t: int = 32
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_chunks(
    given,
    h0,
    marks,
    result,
    h_last,
    products,
    T,
    chunks,
    tile,
    gating,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Phase 3. result: [B,chunks,D] states that leave all chunks but the last. Grid: B * (chunks+1) * groups of blocks.

    h0, h_last: None with marks, which have them.
    """
    SIGN: tl.constexpr = -1 if REVERSE else 1
    D: tl.constexpr = tile.blocks * tile.size
    piece, own = own_part(tl.num_programs(0) - 1 - tl.program_id(0), tile, given.a)
    batch, chunk, begin, steps = own_chunk(piece, chunks + 1, T, CHUNK)
    first = T - 1 - begin if REVERSE else begin
    streams, marks = streams_at(given, batch, first, T, D, SIGN), marks_at(marks, first, SIGN)
    state = entering_chunk(result, h0, batch, chunk, chunks, own.vectors, D, ACC)
    carry = scan_rows(
        streams, marks, start_of(state, tile, products is not None), own, steps, gating, products, BLOCK_T
    )
    store_state(h_last, batch, tl.reshape(carry.state, own.vectors.columns.shape), own.vectors, chunk == chunks)
    if products is not None:
        store_state(State(products.open, D, 1), piece, carry.product, own.vectors)
        if marks is None:
            store_state(products.final, batch, carry.product, own.vectors, chunk == chunks)


def launches(call: Any, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan, products (where asked for)."""
    source = ChunkedInputs(call.x, call.a, config.chunk, call.reverse, False, gating_of(call))
    arguments = _triton_scan_chunks.open_products(source, scan_arguments(call, outputs))
    steps = _triton_scan_chunks.phases(linear_scan_chunks, source, call, outputs, arguments, config)
    if (products := arguments[1]["products"]) is not None:
        steps.append(_triton_scan_chunks.joined_products(source, call, products))
    return steps


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return host.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if host.starves(case, device, below=0.0066) else 15


def traffic(case: Case, config: Any) -> int:
    """x and a read twice but for the last chunk, h written, P and S of chunks passed on."""
    return _triton_scan_chunks.traffic(case, config.chunk, matrices=1, vectors=2)


VARIANT = Variant(
    op="linear_scan",
    name="triton.chunked",
    summary="time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256, 512), "block_t": (16, 32), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
