"""Everything between the matrix products in one pass from the last step to the first.

    products  z = x [W_i W_r]                             one batched product
    scan      gates from z; g_t = dy_t + a_{t+1} g_{t+1}; dz over z; dx's direct part g m i; sums for biases, a_param
    sums      partial sums per row of h0, added in a fixed order
    products  dx += dz [W_i W_r]^T;  [dW_i dW_r] = x^T dz

A program owns ``block_d`` channels of one batch entry or packed sequence. It loads block_t rows of dy, x, y and z at
a time, for 16-bit data one tile ahead, and visits them from last to first, the carry and three sums in registers.

Bytes per element of the scan: eight data elements (16 in bf16, 32 in fp32), which leave an H100 140 instructions and
17 special functions per element at its memory's bandwidth. It takes 72 and 5 on sm_90 in bf16: bound by memory where
N * D is large, by latency and issue of too few warps where it is not (see triton.fused_scan_chunked). The products move
another ten data elements, at n = 256 in bf16 bound by memory too.

float32: gates, carry, all gradients and sums. Rounded to the data's dtype: z, dz before the products (the sums take it
unrounded), the direct part of dx once more before dz W^T is added to it in float32.
Source: the chain rule on arXiv 2402.19427, section 2.4; partial sums in place of atomics for run-to-run determinism.
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
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import load_state, own_channels, store_state
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru._lru_launches import by_rows, unfit_rows
from griffin_kernels.ops.rg_lru._triton_lru import load_gates
from griffin_kernels.ops.rg_lru_bwd import _lru_gradient_launches as lru
from griffin_kernels.ops.rg_lru_bwd._triton_lru_gradient import blocks_before, scan_rows, steps_at, store_sums


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: channels per program; block_d / (32 num_warps) is a thread's share."""

    block_t: int = 8
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T"])
def rg_lru_bwd_scan(steps, parameters, ends, cu_seqlens, partial, T, shape):
    """steps: [B,T,D]; ends: [N,D]; partial: [N,3,D]. Grid: N * ceil(D / block_d)."""
    row, channels = own_channels(tl.program_id(0), shape.width, shape.block_n)
    batch, first, count = span(row, cu_seqlens, T, True)
    carry = load_state(ends.dh_last, row, channels, tl.float32)
    before_first = load_state(ends.h0, row, channels, tl.float32)
    steps = steps_at(steps, batch, first, T, blocks_before(channels, shape), shape.width)
    gates = load_gates(parameters, channels)
    carry, sums = scan_rows(steps, None, None, gates, carry, before_first, channels, count, count, shape)
    store_sums(partial, row, sums, channels, shape)
    if ends.dh0 is not None:
        store_state(ends.dh0, row, carry, channels)


def launches(call: Any, outputs: dict[str, Any], config: Config, branch: Tensor | None = None) -> list[Step]:
    """Gate products, the scan with one program per row of h0 and block of channels, sums, products of gradients."""
    rows = rows_of(call.x.shape[0], call.cu_seqlens)
    over_time = functools.partial(scan, call, config, lru.load_bits(call, config))
    return lru.launches(call, outputs, config, rows, over_time, branch)


def scan(call: Any, config: Any, load_bits: int, args: dict[str, Any]) -> list[Launch]:
    """The pass over time, from the arguments that all such kernels have."""
    # float32 rows of two tiles would not fit in registers
    shape = args["shape"]._replace(ahead=constant(call.x.element_size() == 2))
    args |= {"cu_seqlens": call.cu_seqlens, "shape": shape}
    return [by_rows(rg_lru_bwd_scan, args, config, load_bits, rows_of(call.x.shape[0], call.cu_seqlens))]


VARIANT = Variant(
    op="rg_lru_bwd",
    name="triton.fused_scan",
    summary="all but the products in one pass from the last step, rows loaded ahead",
    config=Config,
    axes={"block_t": (4, 8, 16), "block_d": (32, 64, 128, 256), "num_warps": (1, 2, 4)},
    reject=unfit_rows,
    # the default where there are channels enough to keep the device busy
    rank=lambda case, device: 20 if host.starves(case, device, below=0.03) else 30,
    launches=launches,
    # three sums per row of h0 are written and read besides the products and the scan
    traffic=lambda case, config: lru.traffic(case, rows=6 * case["N"]),
)
