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

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch, Step
from griffin_kernels.ops._triton import chunks as _triton_chunks
from griffin_kernels.ops._triton import host as scan
from griffin_kernels.ops._triton.chunks import entering
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.rg_lru import _triton
from griffin_kernels.ops.rg_lru._triton_jit import decay
from griffin_kernels.ops.rg_lru._triton_rows import reduce_rows, scan_rows


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program. fast: bf16 only."""

    chunk: int = 64
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1
    fast: bool = False


@triton.jit(do_not_specialize=["T", "chunks"])
def rg_lru_chunks(
    x,
    z_i,
    z_r,
    a_param,
    bias_i,
    bias_r,
    h0,
    positions,
    enter,
    leave,
    product,
    result,
    branch,
    y,
    out,
    h_last,
    T,
    chunks,
    x_batch,
    position_batch,
    branch_batch,
    h0_row,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    POSITION_STEP,
    BRANCH_STEP,
    BRANCH_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    REDUCE: tl.constexpr,
    FAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One chunk. REDUCE: (P, S) into product, result [B,chunks,D]. Else result holds the states that leave all chunks
    but the last, and y, out and h_last are written. Grid: B * (chunks, or chunks + 1) * blocks of D.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    place = tl.program_id(0) if REDUCE else tl.num_programs(0) - 1 - tl.program_id(0)
    pieces = chunks if REDUCE else chunks + 1
    columns = (place % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    batch = tl.cast(place // BLOCKS // pieces, tl.int64)
    chunk = tl.cast(place // BLOCKS % pieces, tl.int64)
    first = chunk * CHUNK
    steps = tl.cast(tl.minimum(T - first, CHUNK), tl.int32)
    x += batch * x_batch + first * far(X_STEP)
    z_i += (batch * T + first) * D
    z_r += (batch * T + first) * D
    if positions is not None:
        positions += batch * position_batch + first * far(POSITION_STEP)
    state = h0
    if enter is not None:
        state = None
        enter += first
    b_i = tl.load(bias_i + columns, mask=inside, other=0.0).to(tl.float32)
    b_r = tl.load(bias_r + columns, mask=inside, other=0.0).to(tl.float32)
    decay_log2 = decay(tl.load(a_param + columns, mask=inside, other=0.0))
    if REDUCE:
        p, s = reduce_rows(
            x,
            z_i,
            z_r,
            b_i,
            b_r,
            decay_log2,
            positions,
            enter,
            h0,
            h0_row,
            columns,
            inside,
            first,
            steps,
            D=D,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            H0_CHANNEL=H0_CHANNEL,
            FRESH=FRESH,
            FAST=FAST,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
        )
        out = (batch * chunks + chunk) * D + columns
        tl.store(product + out, p, mask=inside)
        tl.store(result + out, s, mask=inside)
    else:
        if leave is not None:
            leave += first
        if branch is not None:
            branch += batch * branch_batch + first * far(BRANCH_STEP)
        if y is not None:
            y += (batch * T + first) * D
        if out is not None:
            out += (batch * T + first) * D
        carry = scan_rows(
            x,
            z_i,
            z_r,
            b_i,
            b_r,
            decay_log2,
            positions,
            enter,
            leave,
            branch,
            y,
            out,
            h0,
            h0_row,
            h_last,
            entering(result, state, batch, chunk, chunks, h0_row, columns, inside, D, H0_CHANNEL, tl.float32, BLOCK_D),
            columns,
            inside,
            first,
            steps,
            D=D,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            BRANCH_STEP=far(BRANCH_STEP),
            BRANCH_CHANNEL=BRANCH_CHANNEL,
            H0_CHANNEL=H0_CHANNEL,
            FRESH=FRESH,
            FAST=FAST,
            AHEAD=False,  # enough programs have loads in flight
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
        )
        if enter is None:
            tl.store(h_last + batch * D + columns, carry, mask=inside & (chunk == chunks))


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Step]:
    """Two products, marks (packed only), reduce and carry (more than one chunk only), scan."""
    args, constexprs = _triton.arguments(inputs, outputs)
    between, steps = _triton.products(inputs)
    x, h0 = inputs["x"], inputs["h0"]
    batch, time, width = x.shape
    enter, leave, marks = _triton_chunks.mark(
        inputs["cu_seqlens"], h0, outputs["h_last"], time, width, False, tl.float32
    )
    chunks = triton.cdiv(time, config.chunk) - 1
    product = result = None
    if chunks:
        product, result = torch.empty((2, batch, chunks, width), dtype=torch.float32, device=x.device)

    def phase(reduce: bool) -> Launch:
        return Launch(
            kernel=rg_lru_chunks,
            grid=(batch * (chunks if reduce else chunks + 1) * triton.cdiv(width, config.block_d),),
            args=args
            | between
            | {"enter": enter, "leave": leave, "product": product, "result": result, "chunks": chunks},
            constexprs=constexprs
            | {
                "REDUCE": reduce,
                "FAST": config.fast,
                "CHUNK": config.chunk,
                "BLOCK_T": config.block_t,
                "BLOCK_D": config.block_d,
            },
            num_warps=config.num_warps,
            tile=config.block_t * config.block_d,
            claims=Claims(load_bits=scan.load_bits((x, between["z_i"]), config.block_d // (32 * config.num_warps))),
        )

    before: list[Step] = []
    if product is not None and result is not None:
        before = [phase(True), _triton_chunks.carry(product, result, h0 if enter is None else None)]
    return [*steps, *marks, *before, phase(False)]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return _triton.unfit(case, device, config.fast) or scan.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 45 if scan.starves(case, device, streams=3) else 15


def traffic(case: Case, config: Config) -> int:
    """Bytes of the one-pass form, the three streams of all chunks but the last once more, scratch rows."""
    rows = case["B"] * case["D"]
    before = triton.cdiv(case["T"], config.chunk) - 1
    again: int = 3 * rows * before * config.chunk * case.bytes_per_element()
    return _triton.traffic(case, streams=8, scratch=again + 6 * rows * before * 4)


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
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
