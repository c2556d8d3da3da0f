"""triton.fused_scan with time split over programs, for all but the largest batches; from the last step to the first.

    1. products: z = x [W_i W_r]                                            one batched product
    2. reduce:   (P, S) of every chunk but the one visited last, c_out = P c_in + S    reads dy, z_r
    3. carry:    c_in of every chunk                                        reads and writes rows of chunks only
    4. scan:     as triton.fused_scan, from the right c_in; sums per chunk
    5. sums and products, as there

The state that travels is c_t = a_t g_t, what a step hands to the one before it; of the gates only a is needed for it.
Phase 4 takes the chunks in the opposite order, so that what phase 2 read last, and the cache still holds, comes first.

Bytes per element, in data elements: 2 to reduce and 8 to scan (bf16: 20, fp32: 40) besides the products' ten, fewer
where dy and z_r fit in the last-level cache; plus six float32 per chunk and channel each for carries and sums. Special
functions: 3 and 5. Bound by memory bandwidth; one pass would be bound by latency and issue here.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4, and the chain rule on arXiv 2402.19427.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.launch import Launch, Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.chunks import entering_chunk
from griffin_kernels.ops._triton.tensors import State, load_state, marks_at, own_channels, store_state
from griffin_kernels.ops.rg_lru._lru_launches import by_rows, in_chunks, unfit_rows
from griffin_kernels.ops.rg_lru._triton_lru import load_gates, own_chunk
from griffin_kernels.ops.rg_lru_bwd import _lru_gradient_launches as lru
from griffin_kernels.ops.rg_lru_bwd._triton_lru_gradient import (
    blocks_before,
    reduce_rows,
    scan_rows,
    steps_at,
    store_sums,
)


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    chunk: int = 128
    block_t: int = 8
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def rg_lru_bwd_chunks(steps, parameters, ends, marks, product, result, partial, T, chunks, REDUCE: tl.constexpr, shape):
    """One chunk, counted from the end of time. REDUCE: (P, S) into product, result [B,chunks,D]. Else result holds what
    leaves all chunks but the last visited, and dx, z, dh0 and partial [B*(chunks+1),3,D] are written.

    Grid: B * (chunks, or chunks + 1) * blocks of D.
    """
    place = tl.program_id(0) if REDUCE else tl.num_programs(0) - 1 - tl.program_id(0)
    piece, channels = own_channels(place, shape.width, shape.block_n)
    batch, chunk, begin, count = own_chunk(piece, chunks, T, REDUCE, shape.chunk)
    first = T - 1 - begin
    steps = steps_at(steps, batch, first, T, blocks_before(channels, shape), shape.width)
    marks = marks_at(marks, first, -1)
    gates = load_gates(parameters, channels)
    if REDUCE:
        p, s = reduce_rows(steps, marks, gates, channels, shape.chunk, shape)
        store_state(State(product, shape.width, 1), batch * chunks + chunk, p, channels)
        store_state(State(result, shape.width, 1), batch * chunks + chunk, s, channels)
    else:
        given = ends.dh_last if marks is None else None
        carry = entering_chunk(result, given, batch, chunk, chunks, channels, shape.width, tl.float32)
        before_first = load_state(ends.h0, batch, channels, tl.float32, chunk == chunks)
        remaining = tl.cast(first + 1, tl.int32)
        carry, sums = scan_rows(steps, marks, ends.h0, gates, carry, before_first, channels, count, remaining, shape)
        store_sums(partial, piece, sums, channels, shape)
        if ends.dh0 is not None and marks is None:
            store_state(ends.dh0, batch, carry, channels, chunk == chunks)


def launches(call: Any, outputs: dict[str, Any], config: Config, branch: Tensor | None = None) -> list[Step]:
    """Gate products, marks (packed only), reduce and carry (more than one chunk only), scan, sums, products."""
    over_time = functools.partial(scan, call, config, lru.load_bits(call, config), outputs)
    return lru.launches(call, outputs, config, pieces_of(call, config), over_time, branch)


def pieces_of(call: Any, config: Any) -> int:
    """Programs over time: chunks of all batch entries."""
    pieces: int = call.x.shape[0] * triton.cdiv(call.x.shape[1], config.chunk)
    return pieces


def scan(call: Any, config: Any, load_bits: int, outputs: dict[str, Any], args: dict[str, Any]) -> list[Launch]:
    """Marks, reduce, carry and scan, from the arguments that all such kernels have."""
    phase = functools.partial(by_rows, rg_lru_bwd_chunks, config=config, load_bits=load_bits)
    return in_chunks(call, call.dh_last, outputs["dh0"], args, phase, reverse=True)


def traffic(case: Case, config: Config) -> int:
    """dy and z_r read twice but for one chunk; per chunk and channel six float32 to pass carries on and six of sums."""
    chunks = triton.cdiv(case["T"], config.chunk)
    again = 2 * case["B"] * (chunks - 1) * config.chunk * case["D"]
    return lru.traffic(case, again, rows=6 * case["B"] * (2 * chunks - 1))


VARIANT = Variant(
    op="rg_lru_bwd",
    name="triton.fused_scan_chunked",
    summary="triton.fused_scan with time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256), "block_t": (4, 8, 16), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=unfit_rows,
    # the default where one pass over time cannot keep the device busy
    rank=lambda case, device: 40 if host.starves(case, device, below=0.03) else 15,
    launches=launches,
    traffic=traffic,
)
