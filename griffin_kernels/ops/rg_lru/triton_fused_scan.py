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

from __future__ import annotations

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
from griffin_kernels.ops._triton.tensors import State, load_state, own_channels, store_state
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru._triton_lru import load_gates, scan_rows, steps_at
from griffin_kernels.ops.rg_lru.op import Call


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: channels per program. fast: sigmoids by the hardware's tanh, bf16 only."""

    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1
    fast: bool = False


@triton.jit(do_not_specialize=["T"])
def rg_lru_scan(steps, parameters, h0, cu_seqlens, h_last, T, shape):
    """steps: [B,T,D]; h0, h_last: [N,D]. Grid: N * ceil(D / block_d)."""
    row, channels = own_channels(tl.program_id(0), shape.width, shape.block_n)
    batch, first, count = span(row, cu_seqlens, T, False)
    carry = load_state(h0, row, channels, tl.float32)
    steps = steps_at(steps, batch, first, T, shape.width)
    gates = load_gates(parameters, channels)
    carry = scan_rows(steps, None, gates, carry, channels, 0, count, shape)
    store_state(State(h_last, shape.width, 1), row, carry, channels)


def launches(call: Call, outputs: dict[str, Any], config: Config, branch: lru.Branch | None = None) -> list[Step]:
    """Two products, then one program per row of h0 and block of channels."""
    products, steps = lru.products(call)
    return [*steps, scan(call, config, products, lru.arguments(call, outputs, config, branch, products))]


def scan(call: Any, config: Any, gates: tuple[Tensor, ...], args: dict[str, Any]) -> Launch:
    """The pass over time, from ``lru.arguments``. gates: both gates' products, or their pre-activations."""
    shape = args["shape"]._replace(ahead=constant(call.x.element_size() == 2))
    bits = host.load_bits((call.x, *gates), config.block_d // (32 * config.num_warps))
    args |= {"cu_seqlens": call.cu_seqlens, "shape": shape}
    return lru.by_rows(rg_lru_scan, args, config, bits, rows_of(call.x.shape[0], call.cu_seqlens))


VARIANT = Variant(
    op="rg_lru",
    name="triton.fused_scan",
    summary="gate products by a matrix library, the rest in one pass with the scan",
    config=Config,
    axes={"block_t": (8, 16, 32), "block_d": (32, 64, 128, 256), "num_warps": (1, 2, 4), "fast": (False, True)},
    reject=lru.unfit_rows,
    # the default where its loads can keep the memory busy, unless the products can be fused too
    rank=lambda case, device: 25 if host.starves(case, device, below=0.016) else 35,
    launches=launches,
    # x for each product, both products out and in, x in, y out, the weights
    traffic=lambda case, config: lru.traffic(case, streams=8),
)
