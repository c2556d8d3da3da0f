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

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton.chunks import ChunkedInputs, entering_chunk, own_chunk, phases_before
from griffin_kernels.ops._triton.tensors import load_state, marks_at, store_state
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.block_diagonal_scan import _block_launches, _triton_block_chunks
from griffin_kernels.ops.block_diagonal_scan import triton_chunked as forward
from griffin_kernels.ops.block_diagonal_scan._triton_blocks import as_vectors, own_blocks
from griffin_kernels.ops.block_diagonal_scan_bwd import triton_sequential
from griffin_kernels.ops.block_diagonal_scan_bwd.op import Call
from griffin_kernels.ops.linear_scan_bwd._gradient_launches import gradient_arguments
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import scan_rows, streams_at


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer steps ahead than in the forward pass, of more streams."""

    block_t: int = 8


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
    batch, chunk, begin, steps = own_chunk(piece, chunks + 1, T, CHUNK)
    first = begin if REVERSE else T - 1 - begin
    streams = streams_at(given, batch, first, T, D, SIGN, tile.size)
    carry = as_vectors(entering_chunk(result, dh_last, batch, chunk, chunks, own.vectors, D, ACC), tile)
    before_first = load_state(h0 if marks is None else None, batch, own.vectors, ACC, chunk == chunks)
    marks = marks_at(marks, first, SIGN)
    remaining = tl.cast(T - begin, tl.int32)
    carry = scan_rows(streams, marks, h0, carry, before_first, own, steps, remaining, BLOCK_T)
    store_state(dh0, batch, tl.reshape(carry, before_first.shape), own.vectors, chunk == chunks)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    _, args, constexprs = gradient_arguments(call, outputs, _block_launches.matrices)
    source = ChunkedInputs(call.dh, call.a, config.chunk, not call.reverse, True)
    before, args = phases_before(_triton_block_chunks.reduce, source, call, outputs, args, ("dh_last", "dh0"))
    programs, constexprs = call.dh.shape[0] * (args["chunks"] + 1), constexprs | {"CHUNK": config.chunk}
    return [*before, _block_launches.launch(block_diagonal_scan_bwd_chunks, programs, call.a, config, args, constexprs)]


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if _block_launches.splits(case, device, triton_sequential.Config(), 0.65) else 15


def traffic(case: Case, config: Config) -> int:
    """dh and a read twice but for one chunk, h read, dx and dA written."""
    return _triton_block_chunks.traffic(case, config.chunk, matrices=2, vectors=3)


VARIANT = backward_of(
    forward.VARIANT,
    config=Config,
    axes={**forward.VARIANT.axes, "block_t": (4, 8)},
    rank=rank,
    launches=launches,
    traffic=traffic,
)
