"""Everything in one pass over x: gate products on matrix units, gates, and the scan in the same registers.

    z_i = x W_i,  z_r = x W_r,  i = sigmoid(z_i + b_i),  r = sigmoid(z_r + b_r),  log a = -8 softplus(a_param) r
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

A program owns ``block_n`` output channels of a gate block and one batch entry or packed sequence. Its columns of both
weights stay in shared memory; tiles of x, ``block_t`` steps of all the block's channels, come through asynchronous
copies while the tile before is worked on. The n / block_n programs of a gate block read the same tiles of x, which the
second-level cache serves. Products are summed, used and scanned in float32 without leaving the matrix unit's register
layout (see _triton_tiles); the carry stays in registers too.

Bytes per element: the ideal two data elements (bf16: 4), from the cache n / block_n + 1 reads of x more. In bf16 on
sm_90 an element costs 5 special functions and 54 instructions, with ``fast`` 4 and 42, and 4 n tensor FLOPs: bound by
instruction issue, not far above the memory's time, where N * H * n / block_n programs fill the device.
Source: arXiv 2402.19427, section 2.4; the layout is our own.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels import launch
from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host as scan
from griffin_kernels.ops._triton.scan import load_state, span
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.rg_lru import _triton
from griffin_kernels.ops.rg_lru._triton_jit import decay
from griffin_kernels.ops.rg_lru._triton_tiles import gate_tile, load_weight, scan_tile, steps_of_columns, store_tile


@dataclass(frozen=True)
class Config:
    """block_t: steps of a tile, 0 for as many as fit the device. block_n: output channels per program.

    num_stages: tiles of x in shared memory. fast: sigmoids by the hardware's tanh, bf16 only.
    """

    block_t: int = 0
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2
    fast: bool = False


@triton.jit(do_not_specialize=["T"])
def rg_lru_gates(
    x,
    weight_i,
    weight_r,
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
    n: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    POSITION_STEP,
    BRANCH_STEP,
    BRANCH_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    FAST: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x, branch, y, out: [B,T,D]; weights: [H,n,n]; h0, h_last: [N,D]. Grid: N * H * ceil(n / block_n)."""
    SLICES: tl.constexpr = (n + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0) // SLICES % (D // n)
    row = tl.program_id(0) // (SLICES * (D // n))
    outputs = tl.program_id(0) % SLICES * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = block * n + outputs
    inside = outputs < n
    batch, first, length = span(row, cu_seqlens, T, False)
    x += batch * x_batch + first * far(X_STEP) + tl.cast(block, tl.int64) * (n * X_CHANNEL)
    if branch is not None:
        branch += batch * branch_batch + first * far(BRANCH_STEP) + tl.cast(block, tl.int64) * (n * BRANCH_CHANNEL)
    if y is not None:
        y += (batch * T + first) * D
    if out is not None:
        out += (batch * T + first) * D
    if positions is not None:
        positions += batch * position_batch + first * far(POSITION_STEP)
    w_i = load_weight(weight_i, block, outputs, n, PART)
    w_r = load_weight(weight_r, block, outputs, n, PART)
    b_i = tl.load(bias_i + columns, mask=inside, other=0.0).to(tl.float32)
    b_r = tl.load(bias_r + columns, mask=inside, other=0.0).to(tl.float32)
    decay_log2 = decay(tl.load(a_param + columns, mask=inside, other=0.0))
    steps = steps_of_columns(BLOCK_T)
    carry = load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, tl.float32, BLOCK_N)
    for begin in tl.range(0, length, BLOCK_T, num_stages=STAGES):
        left = length - begin
        a, u, cut = gate_tile(
            x,
            positions,
            None,
            None,
            0,
            w_i,
            w_r,
            b_i,
            b_r,
            decay_log2,
            outputs,
            columns,
            steps,
            begin,
            left,
            n=n,
            D=D,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            H0_CHANNEL=H0_CHANNEL,
            FRESH=FRESH,
            FAST=FAST,
            PART=PART,
            BLOCK_N=BLOCK_N,
            BLOCK_T=BLOCK_T,
        )
        states, carry = scan_tile(a, u, cut, carry, BLOCK_N, BLOCK_T)
        store_tile(y, out, branch, states, outputs, columns, inside, steps, left, n, D, far(BRANCH_STEP),
                   BRANCH_CHANNEL, FAST, BLOCK_N, BLOCK_T)  # fmt: skip
        x += BLOCK_T * far(X_STEP)
        if branch is not None:
            branch += BLOCK_T * far(BRANCH_STEP)
        if y is not None:
            y += BLOCK_T * D
        if out is not None:
            out += BLOCK_T * D
        if positions is not None:
            positions += BLOCK_T * far(POSITION_STEP)
    tl.store(h_last + tl.cast(row, tl.int64) * D + columns, carry, mask=inside)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0, gate block and slice of its output channels."""
    args, constexprs = _triton.arguments(inputs, outputs)
    x = inputs["x"]
    blocks, n = inputs["input_gate_bias"].shape
    block_t = _triton.tile_steps(n, x.element_size(), config, launch.architecture(x))
    return [
        Launch(
            kernel=rg_lru_gates,
            grid=(scan.rows_of(inputs, x.shape[0]) * blocks * triton.cdiv(n, config.block_n),),
            args=args | _triton.weights(inputs) | {"cu_seqlens": inputs["cu_seqlens"]},
            constexprs=constexprs | _triton.tile_constexprs(n, block_t, config) | {"STAGES": config.num_stages},
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            tile=block_t * config.block_n,
            claims=_triton.claims(x, n, block_t, config),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _triton.unfit_gates(case, device, config)


def rank(case: Case, device: Device) -> int:
    """The default for 16-bit data where its programs fill the device."""
    return 40 if case.bytes_per_element() == 2 and not _triton.underfills(case, device, VARIANT.config()) else 12


VARIANT = Variant(
    op="rg_lru",
    name="triton.fused_gates",
    summary="gate products on matrix units, gates and scan in one pass over x",
    config=Config,
    axes={
        "block_t": (16, 32, 64),
        "block_n": (32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (2, 3),
        "fast": (False, True),
    },
    reject=reject,
    rank=rank,
    launches=launches,
)
