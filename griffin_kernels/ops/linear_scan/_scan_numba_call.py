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
from griffin_kernels.ops.linear_scan import _scan_lanes, _scan_numba, _scan_numba_gates
from griffin_kernels.ops.linear_scan.op import is_constant, rows_of

_KERNELS = native.Family(_scan_numba.Fields, (*_scan_numba.FILES, str(_scan_numba_gates.__file__)))


def _slots(cu_seqlens: Tensor, chunk: int) -> Tensor:
    """int64 [N+1]: where each packed sequence's chunks begin; a sequence has at least one."""
    counts = (cu_seqlens.diff().long() + chunk - 1).div(chunk, rounding_mode="floor").clamp(min=1)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _block(width: int, size: int, sequences: int, block_d: int, itemsize: int) -> int:
    """Channels of a work item of matrices: at most about ``block_d``, and so few that no thread is without one."""
    grain = math.lcm(size, CACHE_LINE // itemsize)
    share = -(-width * sequences // torch.get_num_threads())
    return min(-(-min(block_d, share) // grain) * grain, width)


def _cut(call: Any, config: Any, sequences: int, time: int) -> tuple[int, int, int, Tensor | None]:
    """(steps of a chunk, chunks of every sequence, slots, the first slot of each packed sequence where time is cut)."""
    chunk = getattr(config, "chunk", None)
    if chunk is None or time <= chunk:
        return time, 1, sequences, None
    if call.cu_seqlens is None:
        chunks = -(-time // chunk)
        return chunk, chunks, sequences * chunks, None
    table = _slots(call.cu_seqlens, chunk)
    return chunk, 1, int(table[-1]), table


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
    options: int = 0,
    given: Tensor | None = None,
    product: Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    """Run a kernel, and the phases around it where time is cut. x: x, or dh; others as in ``Fields``.

    options: of gates, see ``_scan_lanes``. Gives the sums over every slot [slots, D] where they ask for that.
    product: [N, D], what they ask to be written. kept: likewise keep [B, T] and a pool [P, D] with contiguous channels.
    """
    batch, time, width = x.shape
    sequences = final.shape[0]
    if call.a.ndim == 3:
        number, size, a, block = None, 1, native.rows(call.a), config.block_d
        number = _scan_lanes.GATES + options if options else None
        a = a if a.shape == x.shape else a.expand(x.shape)
    elif call.a.ndim == 4:  # pairs of channels
        number, size, a, block = _scan_lanes.PAIRS, 1, native.rows(call.a.flatten(2)), 2 * config.block_d
    else:
        number = size = call.a.shape[-1]
        a, block = native.rows(call.a.flatten(2)), _block(width, size, sequences, config.block_d, x.itemsize)
    blocks = -(-width // block)
    steps, row = x.nbytes, final.nbytes  # bytes of [B,T,D] and of [N,D] in the accumulator's dtype
    keep, pool = (None, None) if kept is None else (kept[0].contiguous(), kept[1])
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    chunk, chunks, slots, table = _cut(call, config, sequences, time)
    carries, products, totals = 0, 0, product
    if chunk < time:
        ends = torch.empty((2, slots, width), dtype=final.dtype, device="cpu")
        carries = address("carries", ends, 2 * final.itemsize * slots * width)
        products = carries + ends.nbytes // 2
    if options & _scan_lanes.SUMMED or (carries and product is not None):
        totals = torch.empty((slots, width), dtype=final.dtype, device="cpu")
    past = sum([output.nbytes for output in outputs]) >= native.STREAMED
    past = past and native.in_lines(block, *[output for output in outputs if output.dtype is x.dtype])
    fields = _KERNELS.fields(
        reset=strided("reset", call.reset, batch * time),
        a=strided("a", a, batch * time * width * size * a.itemsize),
        x=strided("x", x, steps),
        h=strided("h", h, steps),
        given=strided("x", given, steps),
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
        da=0 if len(outputs) < 2 else address("output", outputs[1], a.nbytes),
        totals=address("totals", totals, slots * width * final.itemsize),
        joined=address("product", product, row),
        pool=strided("states", pool, 0 if pool is None else pool.shape[0] * width * pool.itemsize),
        keep=address("keep", keep, 8 * batch * time),
    )
    threads = _threads.threads_for(slots * blocks, batch * time * width * size)
    few = min(threads, sequences * blocks)
    before = ((_scan_numba.reduce, threads), (_scan_numba.carries, few)) if carries else ()
    after = ((_scan_numba_gates.join, few),) if carries and product is not None else ()
    _KERNELS.run(x.dtype, number, fields, *before, (kernel, threads), *after)
    return totals


def _options(call: Any) -> int:
    """Options of a call's gates that kernels of both directions have."""
    options = _scan_lanes.LOG if call.log_a else 0
    if call.convex:
        options += _scan_lanes.CONVEX
    return options if call.a.dtype is call[0].dtype else options + _scan_lanes.WIDE


def gates(call: Any, config: Any, kept: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """linear_scan, with the product of its gates where that is asked for.

    kept: keep [B, T] and the pool [P, D] with contiguous channels that states are copied to.
    """
    options, product = _options(call), None
    if kept is not None:
        return *forward(call, config, options=options + _scan_lanes.KEPT, kept=kept), None
    if not options and not call.with_a_prod:
        return *forward(call, config), None
    if call.with_a_prod:
        options += _scan_lanes.PRODUCT
        shape = rows_of(call.x.shape[0], call.cu_seqlens), call.x.shape[2]
        product = torch.empty(shape, dtype=accumulator(call.x.dtype), device="cpu")
    return *forward(call, config, options=options, product=product), product


def gates_backward(call: Any, config: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient of linear_scan. That of a gate of many steps is summed slot by slot, then over the slots."""
    options = _options(call)
    if is_constant(call):
        options += _scan_lanes.SUMMED
    if not options:
        return backward(call, config)
    dh, wide = native.rows(call.dh), accumulator(call.dh.dtype)
    outputs = [memory.empty(dh.shape, dh.dtype)]
    if not options & _scan_lanes.SUMMED:
        outputs.append(memory.empty(call.a.shape, call.a.dtype))
    dh0 = torch.empty((rows_of(dh.shape[0], call.cu_seqlens), dh.shape[2]), dtype=wide, device="cpu")
    h, h0, initial = native.rows(call.h), native.wide(call.h0, wide), native.wide(call.dh_last, wide)
    states: dict[str, Any] = {"h": h, "h0": h0, "given": native.rows(call.x) if call.convex else None}
    kernel, reverse = _scan_numba_gates.backward, not call.reverse
    sums = _scan(kernel, call, dh, initial, reverse, config, dh0, *outputs, options=options, **states)
    if sums is not None:
        by_row = sums.view(call.a.shape[0], sums.shape[0] // call.a.shape[0], 1, sums.shape[1])
        outputs.append(by_row.sum(1).to(call.a.dtype))
    dx, da = outputs
    return dx, da, None if h0 is None else dh0


def forward(call: Any, config: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """A scan by blocks of ``block_d`` channels, of matrices at most about so many.

    Where the configuration has ``chunk``, by chunks of that many steps too.
    """
    x, wide = native.rows(call.x), accumulator(call.x.dtype)
    h = memory.empty(x.shape, x.dtype)
    h_last = torch.empty((rows_of(x.shape[0], call.cu_seqlens), x.shape[2]), dtype=wide, device="cpu")
    _scan(_scan_numba.forward, call, x, native.wide(call.h0, wide), call.reverse, config, h_last, h, **options)
    return h, h_last


def backward(call: Any, config: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient, likewise; the carry that leaves the first step is the gradient of h0."""
    dh, dtype, wide = native.rows(call.dh), call.a.dtype, accumulator(call.a.dtype)
    dx, da = memory.empty(dh.shape, dtype), memory.empty(call.a.shape, dtype)
    dh0 = torch.empty((rows_of(dh.shape[0], call.cu_seqlens), dh.shape[2]), dtype=wide, device="cpu")
    h, h0, initial = native.rows(call.h), native.wide(call.h0, wide), native.wide(call.dh_last, wide)
    _scan(_scan_numba.backward, call, dh, initial, not call.reverse, config, dh0, dx, da, h=h, h0=h0)
    return dx, da, None if h0 is None else dh0
