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

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.tensors import State, load_state, store_state
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru._triton_lru import steps_at
from griffin_kernels.ops.rg_lru._triton_lru_tiles import own_block, scan_block
from griffin_kernels.ops.rg_lru.op import Call


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
def rg_lru_gates(steps, parameters, h0, cu_seqlens, h_last, T, shape):
    """steps: [B,T,D]; h0, h_last: [N,D]. Grid: N * H * ceil(n / block_n)."""
    row, block = own_block(tl.program_id(0), parameters, shape)
    batch, first, count = span(row, cu_seqlens, T, False)
    carry = load_state(h0, row, block.channels, tl.float32)
    carry = scan_block(steps_at(steps, batch, first, T, shape.width), None, block, carry, 0, count, shape)
    store_state(State(h_last, shape.width, 1), row, carry, block.channels)


def launches(call: Call, outputs: dict[str, Any], config: Config, branch: lru.Branch | None = None) -> list[Launch]:
    """One program per row of h0, gate block and slice of its output channels."""
    args = lru.arguments(call, outputs, config, branch) | {"cu_seqlens": call.cu_seqlens}
    return [lru.by_gates(rg_lru_gates, call, args, config, rows_of(call.x.shape[0], call.cu_seqlens))]


def fills(case: Case, device: Device) -> bool:
    """Whether one program per row, gate block and slice fills half of an NVIDIA device, or more than one of AMD's."""
    programs = case["N"] * case["H"] * -(-case["n"] // Config.block_n)
    return programs >= (1.5 if device.kind == "hip" else 0.49) * device.units


def rank(case: Case, device: Device) -> int:
    """The default for 16-bit data where its programs fill the device, or where time is short."""
    return 50 if case.half and (fills(case, device) or case["T"] < 256) else 12


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
    reject=lru.unfit_gates,
    rank=rank,
    launches=launches,
)
