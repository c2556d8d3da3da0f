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

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.chunks import ChunkedInputs, entering_chunk, own_chunk
from griffin_kernels.ops._triton.tensors import load_state, marks_at, store_state
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.linear_scan import _triton_scan_chunks
from griffin_kernels.ops.linear_scan import triton_chunked as forward
from griffin_kernels.ops.linear_scan._triton_scan import own_part
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import (
    gradient_arguments,
    handed_back,
    scan_rows,
    streams_at,
    with_sums,
)


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer rows ahead than in the forward pass, of more streams."""

    block_t: int = 16


@triton.jit(do_not_specialize=["T", "chunks"])
def linear_scan_bwd_chunks(
    given,
    dh_last,
    h0,
    marks,
    result,
    dh0,
    summed,
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

    dh_last, dh0: None with marks, which have them. summed: [B * (chunks+1), D], for steady gates.
    """
    SIGN: tl.constexpr = 1 if REVERSE else -1
    D: tl.constexpr = tile.blocks * tile.size
    piece, own = own_part(tl.num_programs(0) - 1 - tl.program_id(0), tile, given.a)
    batch, chunk, begin, steps = own_chunk(piece, chunks + 1, T, CHUNK)
    first = begin if REVERSE else T - 1 - begin
    streams = streams_at(given, batch, first, T, D, SIGN, tile.each)
    state = entering_chunk(result, dh_last, batch, chunk, chunks, own.vectors, D, ACC)
    carry = handed_back(state, tile, summed is not None)
    before_first = load_state(h0 if marks is None else None, batch, own.vectors, ACC, chunk == chunks)
    marks = marks_at(marks, first, SIGN)
    remaining = tl.cast(T - begin, tl.int32)
    carry = scan_rows(streams, marks, h0, carry, before_first, own, steps, remaining, gating, BLOCK_T)
    store_state(dh0, batch, tl.reshape(carry.state, before_first.shape), own.vectors, chunk == chunks)
    store_state(summed, piece, carry.total, own.vectors)


def launches(call: Any, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan, sums of da of steady gates."""
    arguments = gradient_arguments(call, outputs)
    source = ChunkedInputs(call.dh, call.a, config.chunk, not call.reverse, True, arguments[1]["gating"])
    programs = call.dh.shape[0] * triton.cdiv(call.dh.shape[1], config.chunk)
    arguments, sums = with_sums(arguments, outputs, programs)
    return [*_triton_scan_chunks.phases(linear_scan_bwd_chunks, source, call, outputs, arguments, config), *sums]


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if host.starves(case, device, below=0.0099) else 15


def traffic(case: Case, config: Any) -> int:
    """dh and a read twice but for one chunk, h read, dx and da written, P and S of chunks passed on."""
    return _triton_scan_chunks.traffic(case, config.chunk, matrices=2, vectors=3)


VARIANT = backward_of(
    forward.VARIANT,
    config=Config,
    axes={**forward.VARIANT.axes, "block_t": (8, 16)},
    rank=rank,
    launches=launches,
    traffic=traffic,
)
