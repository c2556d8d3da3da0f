"""triton.fused_gates with time split over programs, for long sequences of few channels.

    1. reduce: products and gates of every chunk but the last, as one map h_out = P h_in + S      reads x
    2. carry:  h_in of every chunk                                          reads and writes rows of chunks only
    3. scan:   products and gates once more, h from the right h_in          reads x; writes y

The products are made twice rather than kept: they would be as many bytes as x, twice. P is a product of gates a <= 1,
which can only go to 0, where it should. Phase 3 takes the chunks in the opposite order, so that what phase 1 read last,
and the cache still holds, is read first.

Bytes per element, in data elements: 1 + 2 (bf16: 6), plus six float32 per chunk and channel and, from the cache, what
triton.fused_gates reads more; tensor FLOPs, special functions and instructions twice those of it. Bound by instruction
issue. One pass would leave most of the device idle here.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4, on the recurrence of arXiv 2402.19427.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.chunks import entering_chunk
from griffin_kernels.ops._triton.tensors import State, marks_later, store_state
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru._triton_lru import own_chunk, steps_at
from griffin_kernels.ops.rg_lru._triton_lru_tiles import own_block, reduce_block, scan_block
from griffin_kernels.ops.rg_lru.op import Call


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: steps of a tile, 0 for as many as fit the device. block_n: output channels.

    num_stages: tiles of x in shared memory. fast: sigmoids by the hardware's tanh, bf16 only.
    """

    chunk: int = 256
    block_t: int = 0
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2
    fast: bool = False


@triton.jit(do_not_specialize=["T", "chunks"])
def rg_lru_gates_chunks(steps, parameters, h0, marks, product, result, h_last, T, chunks, REDUCE: tl.constexpr, shape):
    """One chunk. REDUCE: (P, S) into product, result [B,chunks,D]. Else result holds the states that leave all chunks
    but the last, and y, out and h_last are written. Grid: B * (chunks, or chunks + 1) * H * ceil(n / block_n).
    """
    place = tl.program_id(0) if REDUCE else tl.num_programs(0) - 1 - tl.program_id(0)
    piece, block = own_block(place, parameters, shape)
    batch, chunk, first, count = own_chunk(piece, chunks, T, REDUCE, shape.chunk)
    marks = marks_later(marks, first)
    if REDUCE:
        p, s = reduce_block(steps_at(steps, batch, first, T, shape.width), marks, block, first, count, shape)
        store_state(State(product, shape.width, 1), batch * chunks + chunk, p, block.channels)
        store_state(State(result, shape.width, 1), batch * chunks + chunk, s, block.channels)
    else:
        given = h0 if marks is None else None
        carry = entering_chunk(result, given, batch, chunk, chunks, block.channels, shape.width, tl.float32)
        carry = scan_block(steps_at(steps, batch, first, T, shape.width), marks, block, carry, first, count, shape)
        if marks is None:
            store_state(State(h_last, shape.width, 1), batch, carry, block.channels, chunk == chunks)


def launches(call: Call, outputs: dict[str, Any], config: Config, branch: lru.Branch | None = None) -> list[Launch]:
    """Marks (packed only), reduce and carry (more than one chunk only), scan."""
    args = lru.arguments(call, outputs, config, branch)
    phase = functools.partial(lru.by_gates, rg_lru_gates_chunks, call, config=config)
    return lru.in_chunks(call, call.h0, outputs["h_last"], args, phase)


def rank(case: Case, device: Device) -> int:
    """The default for 16-bit data where one program per slice would leave most units of an NVIDIA device idle."""
    fits = device.kind != "hip" and case["T"] >= 256 and host.load_share(case, device) >= 0.0016
    return 48 if case.half and fits else 11


VARIANT = Variant(
    op="rg_lru",
    name="triton.fused_gates_chunked",
    summary="gate products on matrix units, time split over programs: reduce, carry, scan",
    config=Config,
    axes={
        "chunk": (64, 128, 256, 512),
        "block_t": (16, 32, 64),
        "block_n": (32, 64, 128),
        "num_stages": (2, 3),
        "fast": (False, True),
    },
    reject=lru.unfit_gates,
    rank=rank,
    launches=launches,
    # the one-pass form's, x of all chunks but the last once more, scratch rows
    traffic=lambda case, config: lru.traffic(case, streams=2, chunk=config.chunk, again=1),
)
