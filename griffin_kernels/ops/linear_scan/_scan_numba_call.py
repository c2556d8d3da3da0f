"""Calls the compiled kernels of _scan_numba.py: outputs, addresses, threads. Shared by all numba scans.

The time and batch strides of x, a, h, dh and reset may be anything; a tensor whose channels, or whose matrices within a
step, are not contiguous is copied first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import accumulator
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops._native import CACHE_LINE
from griffin_kernels.ops._native_rows import STREAM
from griffin_kernels.ops.linear_scan import _scan_lanes, _scan_numba
from griffin_kernels.ops.linear_scan.op import rows_of

_KERNELS = native.Family(_scan_numba.Fields, _scan_numba.FILES)


def _slots(cu_seqlens: Tensor, chunk: int) -> Tensor:
    """int64 [N+1]: where each packed sequence's chunks begin; a sequence has at least one."""
    counts = (cu_seqlens.diff().long() + chunk - 1).div(chunk, rounding_mode="floor").clamp(min=1)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _block(width: int, size: int, sequences: int, block_d: int, itemsize: int) -> int:
    """Channels of a work item of matrices: at most about ``block_d``, and so few that no thread is without one."""
    grain = math.lcm(size, CACHE_LINE // itemsize)
    share = -(-width * sequences // torch.get_num_threads())
    return min(-(-min(block_d, share) // grain) * grain, width)


def _scan(
    kernel: Any,
    call: Any,
    x: Tensor,
    initial: Tensor | None,
    backwards: bool,
    config: Any,
    final: Tensor,
    *outputs: Tensor,
    h: Tensor | None = None,
    h0: Tensor | None = None,
) -> None:
    """Run a kernel, and the two phases before it where time is cut. x: x, or dh; others as in ``Fields``."""
    batch, time, width = x.shape
    sequences, chunk = final.shape[0], getattr(config, "chunk", None)
    if call.a.ndim == 3:
        number, size, a, block = None, 1, native.rows(call.a), config.block_d
    elif call.a.ndim == 4:  # pairs of channels
        number, size, a, block = _scan_lanes.PAIRS, 1, native.rows(call.a.flatten(2)), 2 * config.block_d
    else:
        number = size = call.a.shape[-1]
        a, block = native.rows(call.a.flatten(2)), _block(width, size, sequences, config.block_d, x.itemsize)
    blocks = -(-width // block)
    steps, row = x.nbytes, final.nbytes  # bytes of [B,T,D] and of [N,D] in the accumulator's dtype
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    chunks, slots, table, carries, products = 1, sequences, None, 0, 0
    if chunk is None or time <= chunk:
        chunk = time
    else:
        if offsets is None:
            chunks = -(-time // chunk)
            slots = sequences * chunks
        else:
            table = _slots(offsets, chunk)
            slots = int(table[-1])
        ends = torch.empty((2, slots, width), dtype=final.dtype, device="cpu")
        carries = address("carries", ends, 2 * final.itemsize * slots * width)
        products = carries + ends.nbytes // 2
    past = sum(output.nbytes for output in outputs) >= native.STREAMED and native.in_lines(block, *outputs)
    fields = _KERNELS.fields(
        reset=strided("reset", call.reset, batch * time),
        a=strided("a", a, steps * size),
        x=strided("x", x, steps),
        h=strided("h", h, steps),
        items=slots * blocks,
        blocks=blocks,
        block=block,
        width=width,
        time=time,
        sequences=sequences,
        chunk=chunk,
        chunks=chunks,
        offsets=address("cu_seqlens", offsets, 4 * (sequences + 1)),
        slots=address("chunk table", table, 8 * (sequences + 1)),
        backwards=backwards,
        hints=(_scan_lanes.AHEAD if getattr(config, "ahead", False) else 0) | (STREAM if past else 0),
        gradient=h is not None,
        initial=address("initial state", initial, row),
        final=address("final state", final, row),
        carries=carries,
        products=products,
        before=address("h0", h0, row),
        out=address("output", outputs[0], steps),
        da=0 if h is None else address("output", outputs[1], steps * size),
    )
    threads = _threads.threads_for(slots * blocks, batch * time * width * size)
    before = ((_scan_numba.reduce, threads), (_scan_numba.carries, min(threads, sequences * blocks))) if carries else ()
    _KERNELS.run(x.dtype, number, fields, *before, (kernel, threads))


def gates(call: Any, config: Any) -> tuple[Tensor, Tensor, None]:
    """linear_scan, whose product of gates nobody asked for."""
    return *forward(call, config), None


def forward(call: Any, config: Any) -> tuple[Tensor, Tensor]:
    """A scan by blocks of ``block_d`` channels, of matrices at most about so many.

    Where the configuration has ``chunk``, by chunks of that many steps too.
    """
    x, wide = native.rows(call.x), accumulator(call.x.dtype)
    h = memory.empty(x.shape, x.dtype)
    h_last = torch.empty((rows_of(x.shape[0], call.cu_seqlens), x.shape[2]), dtype=wide, device="cpu")
    _scan(_scan_numba.forward, call, x, native.wide(call.h0, wide), call.reverse, config, h_last, h)
    return h, h_last


def backward(call: Any, config: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient, likewise; the carry that leaves the first step is the gradient of h0."""
    dh, dtype, wide = native.rows(call.dh), call.a.dtype, accumulator(call.a.dtype)
    dx, da = memory.empty(dh.shape, dtype), memory.empty(call.a.shape, dtype)
    dh0 = torch.empty((rows_of(dh.shape[0], call.cu_seqlens), dh.shape[2]), dtype=wide, device="cpu")
    h, h0, initial = native.rows(call.h), native.wide(call.h0, wide), native.wide(call.dh_last, wide)
    _scan(_scan_numba.backward, call, dh, initial, not call.reverse, config, dh0, dx, da, h=h, h0=h0)
    return dx, da, None if h0 is None else dh0
