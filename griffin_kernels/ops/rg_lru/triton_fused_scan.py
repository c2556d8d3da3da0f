"""Gates by batched matrix products, then everything else in one pass over time, the carry in registers.

    z_i = x W_i,  z_r = x W_r                                       a matrix library, in the data's dtype
    i = sigmoid(z_i + b_i),  r = sigmoid(z_r + b_r),  log a = -8 softplus(a_param) r
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

A program owns ``block_d`` channels of one batch entry or packed sequence. Rows of x, z_i and z_r are loaded ``block_t``
at a time; for 16-bit data the next tile is in flight while one is worked on. All arithmetic past the products is
float32; the products are rounded to the data's dtype on their way through memory.

Bytes per element, in data elements: 2 times 2 for the products where x has left the cache between them, then the ideal
4 of a pass with pre-activations given (bf16: 8 + 8, fp32: 16 + 16). In bf16 on sm_90 that pass costs 5 special
functions and 39 instructions per element, with ``fast`` 4 and 28: bound by memory bandwidth where N * D is large, by
latency where N * D / block_d programs cannot fill the device (see triton.fused_scan_chunked).
Source: arXiv 2402.19427, section 2.4; hawk-pytorch fuses the same part of the layer.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch, Step
from griffin_kernels.ops._triton import host as scan
from griffin_kernels.ops._triton.scan import load_state, span
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.rg_lru import _triton
from griffin_kernels.ops.rg_lru._triton_jit import decay
from griffin_kernels.ops.rg_lru._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: channels per program. fast: sigmoids by the hardware's tanh, bf16 only."""

    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1
    fast: bool = False


@triton.jit(do_not_specialize=["T"])
def rg_lru_scan(
    x,
    z_i,
    z_r,
    a_param,
    bias_i,
    bias_r,
    h0,
    positions,
    cu_seqlens,
    branch,
    y,
    out,
    h_last,
    T,
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
    FAST: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x, z_i, z_r, branch, y, out: [B,T,D]; h0, h_last: [N,D]; positions: [B,T]. Grid: N * ceil(D / block_d)."""
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = tl.program_id(0) // BLOCKS
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    batch, first, steps = span(row, cu_seqlens, T, False)
    place = (batch * T + first) * D
    if positions is not None:
        positions += batch * position_batch + first * far(POSITION_STEP)
    if branch is not None:
        branch += batch * branch_batch + first * far(BRANCH_STEP)
    if y is not None:
        y += place
    if out is not None:
        out += place
    carry = scan_rows(
        x + (batch * x_batch + first * far(X_STEP)),
        z_i + place,
        z_r + place,
        tl.load(bias_i + columns, mask=inside, other=0.0).to(tl.float32),
        tl.load(bias_r + columns, mask=inside, other=0.0).to(tl.float32),
        decay(tl.load(a_param + columns, mask=inside, other=0.0)),
        positions,
        None,
        None,
        branch,
        y,
        out,
        h0,
        h0_row,
        h_last,
        load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, tl.float32, BLOCK_D),
        columns,
        inside,
        0,
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
        AHEAD=AHEAD,
        BLOCK_T=BLOCK_T,
        BLOCK_D=BLOCK_D,
    )
    tl.store(h_last + tl.cast(row, tl.int64) * D + columns, carry, mask=inside)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Step]:
    """Two products, then one program per row of h0 and block of channels."""
    args, constexprs = _triton.arguments(inputs, outputs)
    between, steps = _triton.products(inputs)
    x = inputs["x"]
    kernel = Launch(
        kernel=rg_lru_scan,
        grid=(scan.rows_of(inputs, x.shape[0]) * triton.cdiv(x.shape[2], config.block_d),),
        args=args | between | {"cu_seqlens": inputs["cu_seqlens"]},
        constexprs=constexprs
        | {
            "FAST": config.fast,
            "AHEAD": x.element_size() == 2,
            "BLOCK_T": config.block_t,
            "BLOCK_D": config.block_d,
        },
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=scan.load_bits((x, between["z_i"]), config.block_d // (32 * config.num_warps))),
    )
    return [*steps, kernel]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _triton.unfit(case, device, config.fast) or scan.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default where its loads can keep the memory busy, unless the products can be fused too."""
    return 25 if scan.starves(case, device, streams=3) else 35


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: x for each product, both products out and in, x in, y out, the weights."""
    return _triton.traffic(case, streams=8)


VARIANT = Variant(
    op="rg_lru",
    name="triton.fused_scan",
    summary="gate products by a matrix library, the rest in one pass with the scan",
    config=Config,
    axes={
        "block_t": (8, 16, 32),
        "block_d": (32, 64, 128, 256),
        "num_warps": (1, 2, 4),
        "fast": (False, True),
    },
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
