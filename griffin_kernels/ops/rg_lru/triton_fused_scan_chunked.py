"""triton.fused_scan with time split over programs, for long sequences of few channels.

    1. products: x W_i and x W_r                                            a matrix library
    2. reduce:   (P, S) of every chunk but the last, h_out = P h_in + S     reads x and both products
    3. carry:    h_in of every chunk                                        reads and writes rows of chunks only
    4. scan:     gates once more, and h from the right h_in                 reads x and both products; writes y

P is a product of gates a <= 1: it can only go to 0, where it should. Phase 4 takes the chunks in the opposite order,
so that what phase 2 read last, and the cache still holds, is read first.

Bytes per element, in data elements: 4 for the products, 3 to reduce, 4 to scan (bf16: 22, fp32: 44), fewer where x and
the products fit in the last-level cache; plus six float32 per chunk and channel. Special functions: 5 per element in
each of the two phases, or 4. Bound by memory bandwidth; one pass would be bound by latency here.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4, on the recurrence of arXiv 2402.19427.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.launch import Launch, Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.chunks import entering_chunk
from griffin_kernels.ops._triton.tensors import State, marks_later, own_channels, store_state
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru._triton_lru import load_gates, own_chunk, reduce_rows, scan_rows, steps_at
from griffin_kernels.ops.rg_lru.op import Call


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program. fast: bf16 only."""

    chunk: int = 64
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1
    fast: bool = False


@triton.jit(do_not_specialize=["T", "chunks"])
def rg_lru_chunks(steps, parameters, h0, marks, product, result, h_last, T, chunks, REDUCE: tl.constexpr, shape):
    """One chunk. REDUCE: (P, S) into product, result [B,chunks,D]. Else result holds the states that leave all chunks
    but the last, and y, out and h_last are written. Grid: B * (chunks, or chunks + 1) * blocks of D.
    """
    place = tl.program_id(0) if REDUCE else tl.num_programs(0) - 1 - tl.program_id(0)
    piece, channels = own_channels(place, shape.width, shape.block_n)
    batch, chunk, first, count = own_chunk(piece, chunks, T, REDUCE, shape.chunk)
    steps = steps_at(steps, batch, first, T, shape.width)
    marks = marks_later(marks, first)
    gates = load_gates(parameters, channels)
    if REDUCE:
        p, s = reduce_rows(steps, marks, gates, channels, first, count, shape)
        store_state(State(product, shape.width, 1), batch * chunks + chunk, p, channels)
        store_state(State(result, shape.width, 1), batch * chunks + chunk, s, channels)
    else:
        given = h0 if marks is None else None
        carry = entering_chunk(result, given, batch, chunk, chunks, channels, shape.width, tl.float32)
        # nothing ahead: enough programs have loads in flight
        carry = scan_rows(steps, marks, gates, carry, channels, first, count, shape)
        if marks is None:
            store_state(State(h_last, shape.width, 1), batch, carry, channels, chunk == chunks)


def launches(call: Call, outputs: dict[str, Any], config: Config, branch: lru.Branch | None = None) -> list[Step]:
    """Two products, marks (packed only), reduce and carry (more than one chunk only), scan."""
    products, steps = lru.products(call)
    args = lru.arguments(call, outputs, config, branch, products)
    return [*steps, *scan(call, config, products, args, outputs["h_last"])]


def scan(call: Any, config: Any, gates: tuple[Tensor, ...], args: dict[str, Any], h_last: Tensor) -> list[Launch]:
    """Marks, reduce, carry and scan, from ``lru.arguments``. gates: both gates' products, or their pre-activations."""
    bits = host.load_bits((call.x, *gates), config.block_d // (32 * config.num_warps))
    phase = functools.partial(lru.by_rows, rg_lru_chunks, config=config, load_bits=bits)
    return lru.in_chunks(call, call.h0, h_last, args, phase)


VARIANT = Variant(
    op="rg_lru",
    name="triton.fused_scan_chunked",
    summary="gate products by a matrix library, then time split over programs: reduce, carry, scan",
    config=Config,
    axes={
        "chunk": (32, 64, 128, 256),
        "block_t": (8, 16),
        "block_d": (64, 128, 256),
        "num_warps": (1, 2),
        "fast": (False, True),
    },
    reject=lru.unfit_rows,
    # the default where one pass over time cannot keep the memory busy
    rank=lambda case, device: 45 if host.starves(case, device, below=0.016) else 15,
    launches=launches,
    # the one-pass form's, the three streams of all chunks but the last once more, scratch rows
    traffic=lambda case, config: lru.traffic(case, streams=8, chunk=config.chunk, again=3),
)
