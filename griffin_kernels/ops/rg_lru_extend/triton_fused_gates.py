"""rg_lru's triton.fused_gates, which starts from rows of a pool and keeps states there.

    h_{-1} = states[slots[n]],  h = rg_lru(x),  states[keep[t]] = h_t         everything in one pass over x

A program owns ``block_n`` output channels of a gate block and one sequence. States of a tile lie in the registers that
the matrix instructions fill, one row a channel: those that are kept are written from there, 4 bytes a channel. What
binds is told in rg_lru/triton_fused_gates.py; of a few tokens, reading the weights, which every sequence does anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, from_parts
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch, architecture
from griffin_kernels.ops._triton.pools import pool_at, start
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.tensors import load_state
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru._triton_lru import steps_at
from griffin_kernels.ops.rg_lru._triton_lru_tiles import own_block, scan_block
from griffin_kernels.ops.rg_lru.triton_fused_gates import VARIANT as RG_LRU
from griffin_kernels.ops.rg_lru.triton_fused_gates import Config, fills
from griffin_kernels.ops.rg_lru_extend import _extend_launches as extend
from griffin_kernels.ops.rg_lru_extend.op import Call


@triton.jit(do_not_specialize=["T"])
def rg_lru_extend_gates(steps, parameters, pool, cu_seqlens, T, shape):
    """steps: [B,T,D]. Grid: N * H * ceil(n / block_n)."""
    row, block = own_block(tl.program_id(0), parameters, shape)
    batch, first, count = span(row, cu_seqlens, T, False)
    slot = start(pool, row)
    carry = load_state(pool.states, slot, block.channels, tl.float32, slot >= 0)
    tl.debug_barrier()  # no thread writes a row that another has yet to read
    before = (slot >= 0).to(tl.int32)  # as in triton.fused_scan
    kept = pool_at(pool, batch, first)
    scan_block(steps_at(steps, batch, first, T, shape.width), None, block, carry, before, count, shape, kept)


def launches(call: Call, outputs: dict[str, Any], config: Config, branch: lru.Branch | None = None) -> list[Launch]:
    """One program per sequence, gate block and slice of its output channels."""
    args = extend.arguments(call, outputs, config, branch) | {"cu_seqlens": call.cu_seqlens}
    launch = lru.by_gates(rg_lru_extend_gates, call, args, config, call.slots.shape[0])
    if branch is not None and architecture(call.x) == "sm_100":
        spilled = dataclasses.replace(launch.claims, spills="16 bytes a thread, 4 of its 255 registers")
        launch = dataclasses.replace(launch, claims=spilled)
    return [launch]


LONG = 512
"""Steps of a sequence from which its weights, which each sequence reads anew, are few beside its data."""


def rank(case: Case, device: Device) -> int:
    """The default for 16-bit data, but for many short sequences where the static model finds the caches too slow for
    weights that each reads anew: triton.fused_scan's products read them once."""
    slow = device.kind == "hip" or device.arch in ("sm_80", "sm_100")
    many = case["B"] * case["T"] < LONG * case["N"] and fills(case, device)
    return 50 if case.half and not (slow and many) else 12


VARIANT = dataclasses.replace(
    RG_LRU,
    op="rg_lru_extend",
    summary="gate products on matrix units, gates and scan in one pass over x, states in a pool",
    run=from_parts,
    rank=rank,
    launches=launches,
)
