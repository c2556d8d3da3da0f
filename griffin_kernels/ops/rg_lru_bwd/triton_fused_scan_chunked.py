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

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch, Step
from griffin_kernels.ops._triton import chunks as _triton_chunks
from griffin_kernels.ops._triton.chunks import entering
from griffin_kernels.ops._triton.scan import load_state
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.rg_lru_bwd import _triton
from griffin_kernels.ops.rg_lru_bwd._triton_rows import load_channels, reduce_rows, scan_rows, store_sums


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    chunk: int = 128
    block_t: int = 8
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T", "chunks"])
def rg_lru_bwd_chunks(
    dy,
    dh_last,
    x,
    y,
    z,
    branch,
    a_param,
    bias_i,
    bias_r,
    h0,
    positions,
    enter,
    leave,
    product,
    result,
    dx,
    dbranch,
    dh0,
    partial,
    T,
    chunks,
    dy_batch,
    x_batch,
    y_batch,
    branch_batch,
    position_batch,
    dh_last_row,
    h0_row,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    DY_STEP,
    DY_CHANNEL: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    Y_STEP,
    Y_CHANNEL: tl.constexpr,
    BRANCH_STEP,
    BRANCH_CHANNEL: tl.constexpr,
    POSITION_STEP,
    A_PARAM_CHANNEL: tl.constexpr,
    BIAS_I_BLOCK: tl.constexpr,
    BIAS_I_CHANNEL: tl.constexpr,
    BIAS_R_BLOCK: tl.constexpr,
    BIAS_R_CHANNEL: tl.constexpr,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    REDUCE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One chunk, counted from the end of time. REDUCE: (P, S) into product, result [B,chunks,D]. Else result holds what
    leaves all chunks but the last visited, and dx, z, dh0 and partial [B*(chunks+1),3,D] are written.

    Grid: B * (chunks, or chunks + 1) * blocks of D.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    place = tl.program_id(0) if REDUCE else tl.num_programs(0) - 1 - tl.program_id(0)
    pieces = chunks if REDUCE else chunks + 1
    columns = (place % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    piece = place // BLOCKS
    batch = tl.cast(piece // pieces, tl.int64)
    chunk = tl.cast(piece % pieces, tl.int64)
    first = T - 1 - chunk * CHUNK
    dy += batch * dy_batch - first * far(DY_STEP)
    z += (batch * T + first) * (2 * D)
    if branch is not None:
        branch += batch * branch_batch - first * far(BRANCH_STEP)
    if positions is not None:
        positions += batch * position_batch - first * far(POSITION_STEP)
    if enter is not None:
        enter += first
        leave += first
    decay_log2, channel_bias_i, channel_bias_r = load_channels(
        a_param, bias_i, bias_r, columns, inside, WIDTH, A_PARAM_CHANNEL, BIAS_I_BLOCK, BIAS_I_CHANNEL, BIAS_R_BLOCK,
        BIAS_R_CHANNEL,
    )  # fmt: skip
    if REDUCE:
        p, s = reduce_rows(
            dy,
            z,
            branch,
            positions,
            enter,
            dh_last,
            dh_last_row,
            decay_log2,
            channel_bias_r,
            columns,
            inside,
            CHUNK,
            D=D,
            WIDTH=WIDTH,
            DY_STEP=far(DY_STEP),
            DY_CHANNEL=DY_CHANNEL,
            BRANCH_STEP=far(BRANCH_STEP),
            BRANCH_CHANNEL=BRANCH_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            DH_LAST_CHANNEL=DH_LAST_CHANNEL,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
        )
        out = (batch * chunks + chunk) * D + columns
        tl.store(product + out, p, mask=inside)
        tl.store(result + out, s, mask=inside)
    else:
        if branch is not None:
            dbranch += (batch * T + first) * D
        state = dh_last
        before = h0
        if enter is not None:
            state = None
            before = None
        carry, sum_i, sum_r, sum_a = scan_rows(
            dy,
            x + (batch * x_batch - first * far(X_STEP)),
            y + (batch * y_batch - first * far(Y_STEP)),
            z,
            branch,
            positions,
            enter,
            leave,
            dx + (batch * T + first) * D,
            dbranch,
            dh_last,
            dh_last_row,
            h0,
            h0_row,
            dh0,
            entering(
                result, state, batch, chunk, chunks, dh_last_row, columns, inside, D, DH_LAST_CHANNEL, tl.float32,
                BLOCK_D,
            ),
            decay_log2,
            channel_bias_i,
            channel_bias_r,
            load_state(before, batch, h0_row, columns, inside & (chunk == chunks), H0_CHANNEL, tl.float32, BLOCK_D),
            columns,
            inside,
            tl.cast(tl.minimum(first + 1, CHUNK), tl.int32),
            tl.cast(first + 1, tl.int32),
            D=D,
            WIDTH=WIDTH,
            DY_STEP=far(DY_STEP),
            DY_CHANNEL=DY_CHANNEL,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            Y_STEP=far(Y_STEP),
            Y_CHANNEL=Y_CHANNEL,
            BRANCH_STEP=far(BRANCH_STEP),
            BRANCH_CHANNEL=BRANCH_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            DH_LAST_CHANNEL=DH_LAST_CHANNEL,
            H0_CHANNEL=H0_CHANNEL,
            FRESH=FRESH,
            AHEAD=False,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
        )  # fmt: skip
        store_sums(partial, piece, sum_i, sum_r, sum_a, columns, inside, D)
        if dh0 is not None and enter is None:
            tl.store(dh0 + batch * D + columns, carry, mask=inside & (chunk == chunks))


def launches(inputs: dict[str, Any], outputs: dict[str, Any], config: Config) -> list[Step]:
    """Gate products, marks (packed only), reduce and carry (more than one chunk only), scan, sums, products."""
    x, dh_last = inputs["x"], inputs["dh_last"]
    batch, time, width = x.shape
    chunks = triton.cdiv(time, config.chunk) - 1
    both, weights = _triton.side_by_side(inputs)
    z, products = _triton.gate_products(x, both)
    partial = torch.empty(batch * (chunks + 1), 3, width, dtype=torch.float32, device=x.device)
    args, constexprs = _triton.scan_arguments(inputs, outputs, z, partial)
    enter, leave, marks = _triton_chunks.mark(
        args.pop("cu_seqlens"), dh_last, outputs["dh0"], time, width, True, tl.float32
    )
    product = result = None
    if chunks:
        product, result = torch.empty((2, batch, chunks, width), dtype=torch.float32, device=x.device)

    def phase(reduce: bool) -> Launch:
        return Launch(
            kernel=rg_lru_bwd_chunks,
            grid=(batch * (chunks if reduce else chunks + 1) * triton.cdiv(width, config.block_d),),
            args=args | {"enter": enter, "leave": leave, "product": product, "result": result, "chunks": chunks},
            constexprs=constexprs
            | {"REDUCE": reduce, "CHUNK": config.chunk, "BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
            num_warps=config.num_warps,
            tile=config.block_t * config.block_d,
            claims=Claims(load_bits=_triton.load_bits(inputs, config.block_d // (32 * config.num_warps))),
        )

    before: list[Step] = []
    if product is not None and result is not None:
        before = [phase(True), _triton_chunks.carry(product, result, dh_last if enter is None else None)]
    after = _triton.products_of_gradients(inputs, outputs, z, both)
    return [weights, products, *marks, *before, phase(False), _triton.sums(inputs, outputs, partial), *after]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    return _triton.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the device busy."""
    return 40 if _triton.few_warps(case, device) else 15


def traffic(case: Case, config: Config) -> int:
    """dy and z_r read twice but for one chunk; per chunk and channel six float32 to pass carries on and six of sums."""
    chunks = triton.cdiv(case["T"], config.chunk)
    again = 2 * case["B"] * (chunks - 1) * config.chunk * case["D"]
    return _triton.traffic(case, again, rows=6 * case["B"] * (2 * chunks - 1))


VARIANT = Variant(
    op="rg_lru_bwd",
    name="triton.fused_scan_chunked",
    summary="triton.fused_scan with time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256), "block_t": (4, 8, 16), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
