"""One pass from the last step to the first, the carry in registers, ``block_t`` rows loaded ahead of the scan.

    g_t = dh_t + c_{t+1},   dx_t = g_t,   da_t = m_t g_t h_{t-1},   c_t = m_t a_t g_t,   dh0 = c_0

with m_t = 0 where the state was reset. The mirror of linear_scan/triton.sequential: the product with h_{t-1} is taken
on the way, so every stream is read or written once. Only the last tile, which holds the first step, is masked.

Bytes per element: the ideal five data elements (10 in bf16, 20 in fp32). Bound by memory bandwidth where N * D is
large; by memory latency where N * D / block_d programs cannot fill the device.
Source: the chain rule on the recurrence of arXiv 2402.19427, section 2.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.tensors import load_state, store_state
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.linear_scan import triton_sequential as forward
from griffin_kernels.ops.linear_scan._scan_launches import read_by, scan_launch
from griffin_kernels.ops.linear_scan._triton_scan import own_part
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import (
    gradient_arguments,
    handed_back,
    scan_rows,
    streams_at,
    with_sums,
)


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer rows ahead than in the forward pass, of more streams."""

    block_t: int = 16


@triton.jit(do_not_specialize=["T"])
def linear_scan_bwd_sequential(
    given,
    dh_last,
    h0,
    cu_seqlens,
    dh0,
    summed,
    T,
    tile,
    gating,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """given: dh, h, x, dx [B,T,D], a, da [Ba,Ta,D] or [B,T,H,n,n], reset [B,T]; dh_last, h0, dh0, summed: [N,D].

    Grid: N * ceil(blocks / held).
    """
    SIGN: tl.constexpr = 1 if REVERSE else -1
    row, own = own_part(tl.program_id(0), tile, given.a)
    batch, first, steps = span(row, cu_seqlens, T, not REVERSE)
    streams = streams_at(given, batch, first, T, tile.blocks * tile.size, SIGN, tile.each)
    carry = handed_back(load_state(dh_last, row, own.vectors, ACC), tile, summed is not None)
    before_first = load_state(h0, row, own.vectors, ACC)  # [held * n]
    carry = scan_rows(streams, None, None, carry, before_first, own, steps, steps, gating, BLOCK_T)
    store_state(dh0, row, tl.reshape(carry.state, before_first.shape), own.vectors)
    store_state(summed, row, carry.total, own.vectors)


def launches(call: Any, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """One program per row of h0 and block of channels, or group of matrices; sums of da, where there are several."""
    arguments = gradient_arguments(call, outputs)
    (count, args, constexprs), sums = with_sums(arguments, outputs, arguments[0])
    return [scan_launch(linear_scan_bwd_sequential, count, read_by(call), config, args, constexprs), *sums]


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if host.starves(case, device, below=0.0099) else 30


VARIANT = backward_of(
    forward.VARIANT, config=Config, axes={**forward.VARIANT.axes, "block_t": (8, 16, 32)}, rank=rank, launches=launches
)
