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

import functools
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import chunks, host
from griffin_kernels.ops._triton.chunks import entering_chunk, own_chunk
from griffin_kernels.ops._triton.tensors import load_state, marks_at, own_channels, store_state
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.linear_scan import triton_chunked as forward
from griffin_kernels.ops.linear_scan._triton_scan import alike
from griffin_kernels.ops.linear_scan_bwd._gradient_launches import gradient_arguments
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import scan_rows, streams_at
from griffin_kernels.ops.linear_scan_bwd.op import Call


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
    carry = scan_rows(streams, marks, h0, carry, before_first, alike(channels), steps, remaining, BLOCK_T)
    store_state(dh0, batch, carry, channels, chunk == chunks)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    _, args, constexprs = gradient_arguments(call, outputs)
    source = chunks.ChunkedInputs(call.dh, call.a, config.chunk, not call.reverse, True)
    reduce = functools.partial(chunks.reduce, config=config)
    before, args = chunks.phases_before(reduce, source, call, outputs, args, ("dh_last", "dh0"))
    programs, constexprs = call.a.shape[0] * (args["chunks"] + 1), constexprs | {"CHUNK": config.chunk}
    inputs = call.dh, call.a, call.h
    return [*before, host.channel_launch(linear_scan_bwd_chunks, programs, inputs, config, args, constexprs)]


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if host.starves(case, device, below=0.0099) else 15


def traffic(case: Case, config: Config) -> int:
    """dh and a read twice but for one chunk; two accumulators per chunk and channel passed on."""
    return chunks.traffic(case, config.chunk, streams=5)


VARIANT = backward_of(
    forward.VARIANT,
    config=Config,
    axes={**forward.VARIANT.axes, "block_t": (8, 16)},
    rank=rank,
    launches=launches,
    traffic=traffic,
)
