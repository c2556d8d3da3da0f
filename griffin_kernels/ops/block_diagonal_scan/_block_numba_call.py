"""Calls the compiled kernels of _block_numba.py: outputs, addresses, threads. Shared by both ops.

The time and batch strides of x, h, dh, a and reset may be anything; a tensor whose channels, or whose matrices within a
step, are not contiguous is copied first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops._native import CACHE_LINE
from griffin_kernels.ops.block_diagonal_scan import _block_numba
from griffin_kernels.ops.block_diagonal_scan.op import Call
from griffin_kernels.ops.block_diagonal_scan_bwd.op import Call as BackwardCall
from griffin_kernels.ops.linear_scan import _scan_numba_call

_KERNELS = native.Family(_block_numba.Fields, _block_numba.FILES)


def _group(width: int, size: int, sequences: int, block_d: int, itemsize: int) -> int:
    """Channels of a work item: at most about ``block_d``, and few enough that no thread is without one."""
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
    """Run a kernel. x: x, or dh; others as in ``_block_numba.Fields``."""
    batch, time, width = x.shape
    size, a = call.a.shape[-1], native.rows(call.a.flatten(2))
    group = _group(width, size, final.shape[0], config.block_d, x.element_size())
    groups = -(-width // group)
    items = final.shape[0] * groups
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    steps, row = x.nbytes, final.nbytes  # bytes of [B,T,D] and of [N,D] in the accumulator's dtype
    written = steps if h is None else steps * (1 + size)
    fields = _KERNELS.fields(
        reset=strided("reset", call.reset, batch * time),
        a=strided("a", a, steps * size),
        x=strided("x", x, steps),
        h=strided("h", h, steps),
        items=items,
        groups=groups,
        group=group,
        width=width,
        time=time,
        offsets=address("cu_seqlens", offsets, 4 * (final.shape[0] + 1)),
        backwards=backwards,
        stream=written >= native.STREAMED and native.in_lines(group, *outputs),
        initial=address("initial state", initial, row),
        final=address("final state", final, row),
        before=address("h0", h0, row),
        out=address("output", outputs[0], steps),
        da=0 if h is None else address("output", outputs[1], steps * size),
    )
    threads = _threads.threads_for(items, batch * time * width * size)
    _KERNELS.run(x.dtype, size, fields, (kernel, threads))


def forward(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    """block_diagonal_scan by groups of at most about ``block_d`` channels."""
    return _scan_numba_call.forward(call, config, _scan, _block_numba)


def backward(call: BackwardCall, config: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """block_diagonal_scan_bwd, likewise."""
    return _scan_numba_call.backward(call, config, _scan, _block_numba)
