"""Gate products recomputed inside: from dy, x and y to dz and dx's direct part in one pass, then two products.

    one pass  z = x [W_i W_r] on matrix units, gates, g_t = dy_t + a_{t+1} g_{t+1}, dz, g m i, sums for biases, a_param
    sums      partial sums per row of h0, added in a fixed order
    products  dx += dz [W_i W_r]^T;  [dW_i dW_r] = x^T dz

A program owns ``block_n`` output channels of a gate block and one batch entry or packed sequence, as in
rg_lru/triton.fused_gates, whose layout keeps products, gates and scan in the same registers; it visits tiles from the
last step to the first. Through the weights, dx needs all of a block's dz, which are spread over n / block_n programs,
and dW needs all steps: both stay products of a matrix library.

Bytes per element of the pass: six data elements (bf16: 12) and n / block_n + 1 reads of x more from the cache; the
products move seven more. triton.fused_scan moves eighteen in all. In bf16 on sm_90 an element costs 5 special functions
and 128 instructions, of which the memory's time leaves 107: bound by instruction issue where N * H * n / block_n
programs fill the device, by latency where they do not.

float32: z, gates, carry, gradients, sums. Rounded to the data's dtype: dz before the products (the sums take it
unrounded), the direct part of dx once more before dz W^T is added to it in float32.
Source: the chain rule on arXiv 2402.19427, section 2.4; the layout is our own.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from griffin_kernels.architectures import SCRATCH, no_products, over_shared
from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch, Step
from griffin_kernels.ops._triton import host as scan
from griffin_kernels.ops._triton.scan import load_state, span
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.rg_lru import _triton as forward
from griffin_kernels.ops.rg_lru._triton_tiles import load_weight, steps_of_columns
from griffin_kernels.ops.rg_lru_bwd import _triton
from griffin_kernels.ops.rg_lru_bwd._triton_rows import load_channels, store_sums
from griffin_kernels.ops.rg_lru_bwd._triton_tiles import backward_tile, store_tile


@dataclass(frozen=True)
class Config:
    """block_t: steps of a tile. block_n: output channels per program. num_stages: tiles in shared memory."""

    block_t: int = 16
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2


@triton.jit(do_not_specialize=["T"])
def rg_lru_bwd_gates(
    dy,
    dh_last,
    x,
    y,
    z,
    branch,
    weight_i,
    weight_r,
    a_param,
    bias_i,
    bias_r,
    h0,
    positions,
    cu_seqlens,
    dx,
    dbranch,
    dh0,
    partial,
    T,
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
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dy, x, y, dx: [B,T,D]; z: [B*T,H,2,n]; weights: [H,n,n]; dh_last, h0, dh0: [N,D]; partial: [N,3,D].

    Grid: N * H * ceil(n / block_n), output channels fastest.
    """
    SLICES: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    MASKED: tl.constexpr = WIDTH % BLOCK_N != 0
    block = tl.program_id(0) // SLICES % (D // WIDTH)
    row = tl.program_id(0) // (SLICES * (D // WIDTH))
    outputs = tl.program_id(0) % SLICES * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = block * WIDTH + outputs
    inside = outputs < WIDTH
    batch, last, length = span(row, cu_seqlens, T, True)
    channel = tl.cast(block, tl.int64) * WIDTH
    dy += batch * dy_batch - last * far(DY_STEP) + channel * DY_CHANNEL
    x += batch * x_batch - last * far(X_STEP) + channel * X_CHANNEL
    y += batch * y_batch - last * far(Y_STEP) + channel * Y_CHANNEL
    z += (batch * T + last) * (2 * D) + 2 * channel
    dx += (batch * T + last) * D + channel
    if positions is not None:
        positions += batch * position_batch - last * far(POSITION_STEP)
    w_i = load_weight(weight_i, block, outputs, WIDTH, PART)
    w_r = load_weight(weight_r, block, outputs, WIDTH, PART)
    decay_log2, b_i, b_r = load_channels(
        a_param, bias_i, bias_r, columns, inside, WIDTH, A_PARAM_CHANNEL, BIAS_I_BLOCK, BIAS_I_CHANNEL, BIAS_R_BLOCK,
        BIAS_R_CHANNEL,
    )  # fmt: skip
    before_first = load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, tl.float32, BLOCK_N)
    carry = load_state(dh_last, row, dh_last_row, columns, inside, DH_LAST_CHANNEL, tl.float32, BLOCK_N)
    steps = steps_of_columns(BLOCK_T)
    sum_i = tl.zeros_like(carry)
    sum_r = tl.zeros_like(carry)
    sum_a = tl.zeros_like(carry)
    for begin in tl.range(0, length, BLOCK_T, num_stages=STAGES):
        left = length - begin
        direct, dz_i, dz_r, r_dlog_a, carry = backward_tile(
            dy,
            x,
            y,
            positions,
            w_i,
            w_r,
            b_i,
            b_r,
            decay_log2,
            h0,
            before_first,
            carry,
            outputs,
            steps,
            left,
            n=WIDTH,
            D=D,
            DY_STEP=far(DY_STEP),
            DY_CHANNEL=DY_CHANNEL,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            Y_STEP=far(Y_STEP),
            Y_CHANNEL=Y_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            FRESH=FRESH,
            PART=PART,
            BLOCK_N=BLOCK_N,
            BLOCK_T=BLOCK_T,
        )
        store_tile(dx, direct, outputs, inside, steps, left, -D, D, MASKED, BLOCK_T)
        store_tile(z, dz_i, outputs, inside, steps, left, -2 * D, D, MASKED, BLOCK_T)
        store_tile(z + WIDTH, dz_r, outputs, inside, steps, left, -2 * D, D, MASKED, BLOCK_T)
        sum_i += tl.sum(dz_i, axis=1)
        sum_r += tl.sum(dz_r, axis=1)
        sum_a += tl.sum(r_dlog_a, axis=1)
        dy += BLOCK_T * far(DY_STEP)
        x += BLOCK_T * far(X_STEP)
        y += BLOCK_T * far(Y_STEP)
        z -= BLOCK_T * 2 * D
        dx -= BLOCK_T * D
        if positions is not None:
            positions += BLOCK_T * far(POSITION_STEP)
    store_sums(partial, row, sum_i, sum_r, sum_a, columns, inside, D)
    if dh0 is not None:
        tl.store(dh0 + tl.cast(row, tl.int64) * D + columns, carry, mask=inside)


def launches(inputs: dict[str, Any], outputs: dict[str, Any], config: Config) -> list[Step]:
    """The pass with one program per row of h0, gate block and slice of its channels; sums; products of gradients."""
    x = inputs["x"]
    rows, width = scan.rows_of(inputs, x.shape[0]), x.shape[2]
    blocks, n = inputs["input_gate_bias"].shape
    both, weights = _triton.side_by_side(inputs)
    z = torch.empty(x.shape[0] * x.shape[1], blocks, 2, n, dtype=x.dtype, device=x.device)
    partial = torch.empty(rows, 3, width, dtype=torch.float32, device=x.device)
    args, constexprs = _triton.scan_arguments(inputs, outputs, z, partial)
    backwards = Launch(
        kernel=rg_lru_bwd_gates,
        grid=(rows * blocks * triton.cdiv(n, config.block_n),),
        args=args | forward.weights(inputs),
        constexprs=constexprs
        | {
            "PART": forward.part(n),
            "BLOCK_N": config.block_n,
            "BLOCK_T": config.block_t,
            "STAGES": config.num_stages,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        tile=config.block_t * config.block_n,
        claims=forward.claims(x, n, config.block_t, config),
    )
    after = _triton.products_of_gradients(inputs, outputs, z, both)
    return [weights, backwards, _triton.sums(inputs, outputs, partial), *after]


def shared_bytes(n: int, size: int, config: Config, arch: str) -> int:
    """Shared memory at most: num_stages tiles of all inputs; on NVIDIA both gates' weights too."""
    tiles = size * config.num_stages * (forward.padded(n) + 3 * config.block_n) * config.block_t + SCRATCH
    return tiles if arch.startswith("gfx") else tiles + size * 2 * forward.padded(n) * config.block_n


def reject(case: Case, device: Device, config: Config) -> str | None:
    if reason := forward.unfit(case, device, False):
        return reason
    n, size = case["n"], case.bytes_per_element()
    if n < 4:
        return f"gate blocks of {n} channels use at most {n} of 16 rows of a matrix instruction"
    if n > 256:
        return f"both gates' weights for {n} input channels do not stay in shared memory; those for 256 do"
    if case.dtype == "float32" and device.kind == "cuda":
        return (
            "float32 products have no matrix instruction that does not round to TF32; triton.fused_scan calls a library"
        )
    if reason := no_products(device.arch, case.dtype):
        return reason
    if config.block_n > 64 and config.block_n >= 2 * n:
        return f"block_n={config.block_n} is at least twice the {n} channels of a gate block"
    return over_shared(shared_bytes(n, size, config, device.arch), device.arch)


def rank(case: Case, device: Device) -> int:
    """The default for 16-bit data where its programs, two to a multiprocessor at a time, fill the device twice over."""
    programs = case["N"] * case["H"] * triton.cdiv(case["n"], Config().block_n)
    return 45 if case.bytes_per_element() == 2 and programs >= 4 * device.units else 12


def traffic(case: Case, config: Config) -> int:
    """Less than triton.fused_scan: z is not written and read, and x is not read for it."""
    elements = case["B"] * case["T"] * case["D"]
    return _triton.traffic(case, again=-5 * elements, rows=6 * case["N"])


VARIANT = Variant(
    op="rg_lru_bwd",
    name="triton.fused_gates",
    summary="gate products on matrix units, gates and backward scan in one pass; two products after it",
    config=Config,
    axes={"block_t": (16, 32, 64), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3)},
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
