"""linear_scan's triton.sequential, which starts from rows of a pool and keeps states there.

    h_{-1} = states[slots[n]],   h_t = a_t * h_{t-1} + x_t,   states[keep[t]] = h_t

A program owns ``block_d`` channels of one sequence, so that it alone touches these channels of the sequence's rows: it
reads the first state before it writes any. Rows of keep are scalars, loaded with the tile; a kept state is written from
registers, 4 bytes a channel. What binds is told in linear_scan/triton_sequential.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import from_parts
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host, pools
from griffin_kernels.ops._triton.gating import gating_of
from griffin_kernels.ops._triton.pools import pool_at, start
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.tensors import load_state, rows
from griffin_kernels.ops.linear_scan._scan_launches import scan_launch, steps_of
from griffin_kernels.ops.linear_scan._triton_scan import Streams, own_part, scan_rows, start_of, streams_at
from griffin_kernels.ops.linear_scan.triton_sequential import VARIANT as SCAN
from griffin_kernels.ops.linear_scan.triton_sequential import Config
from griffin_kernels.ops.linear_scan_extend.op import Call


@triton.jit(do_not_specialize=["T"])
def linear_scan_extend_rows(given, pool, cu_seqlens, T, tile, gating, ACC: tl.constexpr, BLOCK_T: tl.constexpr):
    """given: x, h [B,T,D], a [Ba,Ta,D], reset [B,T]. Grid: N * ceil(D / block_d)."""
    row, own = own_part(tl.program_id(0), tile, given.a)
    batch, first, steps = span(row, cu_seqlens, T, False)
    streams = streams_at(given, batch, first, T, tile.blocks * tile.size, 1)
    slot = start(pool, row)
    state = load_state(pool.states, slot, own.vectors, ACC, slot >= 0)
    tl.debug_barrier()  # no thread writes a row that another has yet to read
    kept = pool_at(pool, batch, first)
    scan_rows(streams, None, start_of(state, tile, False), own, steps, gating, None, BLOCK_T, kept)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per sequence and block of channels."""
    x, a = call.x, call.a
    h = host.empty(outputs, "h", x, *x.shape, dtype=x.dtype)
    args = {
        "given": Streams(rows(x), steps_of(a, x, False), rows(call.reset), h),
        "pool": pools.pool(call.states, call.slots, call.keep),
        "cu_seqlens": call.cu_seqlens,
        "T": x.shape[1],
        "gating": gating_of(call),
    }
    constexprs = {"ACC": host.wide(x.dtype)}
    return [scan_launch(linear_scan_extend_rows, call.slots.shape[0], (x, a), config, args, constexprs)]


VARIANT = dataclasses.replace(
    SCAN,
    op="linear_scan_extend",
    summary="one pass, carry in registers, rows loaded ahead, states in a pool",
    run=from_parts,
    launches=launches,
    rank=lambda case, device: 30,
)
