"""One pass from the last step to the first, states in registers, ``block_t`` steps loaded ahead of the scan.

    g_t = dh_t + c_{t+1},   dx_t = g_t,   dA_t = m_t g_t h_{t-1}^T,   c_t = m_t A_t^T g_t,   dh0 = c_0

with m_t = 0 where the state was reset. The mirror of block_diagonal_scan/triton.sequential: a matrix in registers is
multiplied by g along its rows and summed over them, dA is written with the same 16 bytes a thread. Only the last tile,
which holds the first step, is masked.

Bytes per element of h: 2 n + 3 data elements, the ideal; a and dA dominate (bf16, n = 16: 70). Bound by memory
bandwidth where N * H blocks fill the device; else by the latency of a step. The sum over a matrix's rows crosses
threads: for n = 16 four shuffles per element of a, by count some 40% of what an H100 issues while it moves the bytes.
Source: the chain rule on block_diagonal_scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.tensors import load_state, store_state
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.block_diagonal_scan import _block_launches
from griffin_kernels.ops.block_diagonal_scan import triton_sequential as forward
from griffin_kernels.ops.block_diagonal_scan._triton_blocks import as_vectors, own_blocks
from griffin_kernels.ops.block_diagonal_scan_bwd.op import Call
from griffin_kernels.ops.linear_scan_bwd._gradient_launches import gradient_arguments
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import scan_rows, streams_at


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer steps ahead than in the forward pass, of more streams."""

    block_t: int = 8


@triton.jit(do_not_specialize=["T"])
def block_diagonal_scan_bwd_sequential(
    given, dh_last, h0, cu_seqlens, dh0, T, tile, REVERSE: tl.constexpr, ACC: tl.constexpr, BLOCK_T: tl.constexpr
):
    """given: dh, h, dx [B,T,D], a, da [B,T,H,n,n], reset; dh_last, h0, dh0: [N,D]. Grid: N * ceil(H / held)."""
    SIGN: tl.constexpr = 1 if REVERSE else -1
    row, own = own_blocks(tl.program_id(0), tile, given.a)
    batch, first, steps = span(row, cu_seqlens, T, not REVERSE)
    streams = streams_at(given, batch, first, T, tile.blocks * tile.size, SIGN, tile.size)
    carry = as_vectors(load_state(dh_last, row, own.vectors, ACC), tile)
    before_first = load_state(h0, row, own.vectors, ACC)  # [held * n]
    carry = scan_rows(streams, None, None, carry, before_first, own, steps, steps, BLOCK_T)
    store_state(dh0, row, tl.reshape(carry, before_first.shape), own.vectors)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and group of blocks."""
    count, args, constexprs = gradient_arguments(call, outputs, _block_launches.matrices)
    return [_block_launches.launch(block_diagonal_scan_bwd_sequential, count, call.a, config, args, constexprs)]


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if _block_launches.splits(case, device, Config(), 0.65) else 30


VARIANT = backward_of(
    forward.VARIANT, config=Config, axes={**forward.VARIANT.axes, "block_t": (4, 8, 16)}, rank=rank, launches=launches
)
