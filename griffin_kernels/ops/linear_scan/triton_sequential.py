"""One pass over time, the carry in registers, ``block_t`` rows loaded ahead of the scan.

    h_t = a_t * h_{t-1} + x_t

A program owns ``block_d`` channels of one batch entry or packed sequence. It loads block_t rows of x and a into
registers, all loads issued before the first is used, then scans and stores them: the arithmetic is one multiply-add per
element, so what matters is bytes in flight. Only the last tile is masked in time.

Bytes per element: the ideal three data elements (6 in bf16, 12 in fp32). Bound by memory bandwidth where N * D is
large; by memory latency where N * D / block_d programs cannot fill the device (see triton.chunked).
Source: the recurrence of arXiv 2402.19427, section 2.4; the paper's own kernel scans sequentially too (section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.tensors import load_state, store_state
from griffin_kernels.ops.linear_scan._scan_launches import scan_arguments, scan_launch
from griffin_kernels.ops.linear_scan._triton_scan import own_part, scan_rows, start_of, streams_at


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: channels per program; block_d / (32 num_warps) is a thread's share."""

    block_t: int = 32
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T"])
def linear_scan_sequential(
    given,
    h0,
    cu_seqlens,
    h_last,
    a_prod,
    T,
    tile,
    gating,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """given: x, h [B,T,D], a [Ba,Ta,D] or [B,T,H,n,n], reset [B,T]; h0, h_last, a_prod: [N,D].

    Grid: N * ceil(blocks / held).
    """
    SIGN: tl.constexpr = -1 if REVERSE else 1
    row, own = own_part(tl.program_id(0), tile, given.a)
    batch, first, steps = span(row, cu_seqlens, T, REVERSE)
    streams = streams_at(given, batch, first, T, tile.blocks * tile.size, SIGN)
    carry = start_of(load_state(h0, row, own.vectors, ACC), tile, a_prod is not None)
    carry = scan_rows(streams, None, carry, own, steps, gating, None, BLOCK_T)
    store_state(h_last, row, tl.reshape(carry.state, own.vectors.columns.shape), own.vectors)
    store_state(a_prod, row, carry.product, own.vectors)


def launches(call: Any, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """One program per row of h0 and block of channels, or group of matrices."""
    count, args, constexprs = scan_arguments(call, outputs)
    return [scan_launch(linear_scan_sequential, count, call[:2], config, args, constexprs)]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return host.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if host.starves(case, device, below=0.0066) else 30


VARIANT = Variant(
    op="linear_scan",
    name="triton.sequential",
    summary="one pass, carry in registers, rows loaded ahead",
    config=Config,
    axes={"block_t": (16, 32, 64), "block_d": (32, 64, 128, 256), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
