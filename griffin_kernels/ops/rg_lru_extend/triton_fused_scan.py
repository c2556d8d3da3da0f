"""rg_lru's triton.fused_scan, which starts from rows of a pool and keeps states there.

    z_i = x W_i,  z_r = x W_r                                       a matrix library, in the data's dtype
    h_{-1} = states[slots[n]],  h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t,  states[keep[t]] = h_t

A program owns ``block_d`` channels of one sequence, so that it alone touches these channels of the sequence's rows: it
reads the first state before it writes any. Per kept token and channel 4 bytes are written, per token 8 read; what binds
is told in rg_lru/triton_fused_scan.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import from_parts
from griffin_kernels.launch import Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.pools import pool_at, start
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import load_state, own_channels
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru._triton_lru import load_gates, scan_rows, steps_at
from griffin_kernels.ops.rg_lru.triton_fused_scan import VARIANT as RG_LRU
from griffin_kernels.ops.rg_lru.triton_fused_scan import Config
from griffin_kernels.ops.rg_lru_extend import _extend_launches as extend
from griffin_kernels.ops.rg_lru_extend.op import Call, gate_call


@triton.jit(do_not_specialize=["T"])
def rg_lru_extend_scan(steps, parameters, pool, cu_seqlens, T, shape):
    """steps: [B,T,D]. Grid: N * ceil(D / block_d)."""
    row, channels = own_channels(tl.program_id(0), shape.width, shape.block_n)
    batch, first, count = span(row, cu_seqlens, T, False)
    slot = start(pool, row)
    carry = load_state(pool.states, slot, channels, tl.float32, slot >= 0)
    tl.debug_barrier()  # no thread writes a row that another has yet to read
    steps = steps_at(steps, batch, first, T, shape.width)
    gates = load_gates(parameters, channels)
    # a sequence that has a state counts a step as done, so that none of its own is the first
    before = (slot >= 0).to(tl.int32)
    scan_rows(steps, None, gates, carry, channels, before, count, shape, pool_at(pool, batch, first))


def launches(call: Call, outputs: dict[str, Any], config: Config, branch: lru.Branch | None = None) -> list[Step]:
    """Two products, then one program per sequence and block of channels."""
    x, (products, steps) = call.x, lru.products(gate_call(call))
    args = extend.arguments(call, outputs, config, branch, products) | {"cu_seqlens": call.cu_seqlens}
    args["shape"] = args["shape"]._replace(ahead=constant(x.element_size() == 2))
    bits = host.load_bits((x, products[0]), config.block_d // (32 * config.num_warps))
    return [*steps, lru.by_rows(rg_lru_extend_scan, args, config, bits, call.slots.shape[0])]


VARIANT = dataclasses.replace(
    RG_LRU,
    op="rg_lru_extend",
    summary="gate products by a matrix library, the rest in one pass with the scan, states in a pool",
    run=from_parts,
    launches=launches,
    traffic=lambda case, config: extend.traffic(case, streams=8),
)
