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

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch, Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.tensors import load_state, store_state
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru import _lru_launches as forward
from griffin_kernels.ops.rg_lru._triton_lru_tiles import own_block
from griffin_kernels.ops.rg_lru_bwd import _lru_gradient_launches as lru
from griffin_kernels.ops.rg_lru_bwd._triton_lru_gradient import scan_block, steps_at, store_sums


@dataclass(frozen=True)
class Config:
    """block_t: steps of a tile. block_n: output channels per program. num_stages: tiles in shared memory."""

    block_t: int = 16
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2


@triton.jit(do_not_specialize=["T"])
def rg_lru_bwd_gates(steps, parameters, ends, cu_seqlens, partial, T, shape):
    """steps: [B,T,D]; ends: [N,D]; partial: [N,3,D]. Grid: N * H * ceil(n / block_n), output channels fastest."""
    row, block = own_block(tl.program_id(0), parameters, shape)
    batch, last, count = span(row, cu_seqlens, T, True)
    carry = load_state(ends.dh_last, row, block.channels, tl.float32)
    before_first = None
    if ends.h0 is not None:
        before_first = load_state(ends.h0, row, block.channels, tl.float32)
    blocks_before = tl.cast(block.number, tl.int64) * shape.n
    carry, sums = scan_block(
        steps_at(steps, batch, last, T, blocks_before, shape.width), block, carry, before_first, count, shape
    )
    store_sums(partial, row, sums, block.channels, shape)
    if ends.dh0 is not None:
        store_state(ends.dh0, row, carry, block.channels)


def launches(call: Any, outputs: dict[str, Any], config: Config) -> list[Step]:
    """The pass with one program per row of h0, gate block and slice of its channels; sums; products of gradients."""
    rows = rows_of(call.x.shape[0], call.cu_seqlens)

    def scan(args: dict[str, Any]) -> list[Launch]:
        return [forward.by_gates(rg_lru_bwd_gates, call, args | {"cu_seqlens": call.cu_seqlens}, config, rows)]

    return lru.launches(call, outputs, config, rows, scan, inside=True)


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time keeps the memory busy: of 16-bit data on NVIDIA's, of 32-bit on AMD's."""
    if device.kind == "hip":
        return 45 if not case.half and host.load_share(case, device) >= 0.018 else 12
    return 45 if case.half and host.load_share(case, device) >= 0.008 else 12


VARIANT = Variant(
    op="rg_lru_bwd",
    name="triton.fused_gates",
    summary="gate products on matrix units, gates and backward scan in one pass; two products after it",
    config=Config,
    axes={"block_t": (16, 32, 64), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3)},
    reject=functools.partial(forward.unfit_gates, backward=True),
    rank=rank,
    launches=launches,
    # less than triton.fused_scan: z is not written and read, and x is not read for it
    traffic=lambda case, config: lru.traffic(case, again=-5 * case["B"] * case["T"] * case["D"], rows=6 * case["N"]),
)
