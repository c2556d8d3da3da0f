"""Calls the compiled kernels of _numba.py: outputs, addresses, threads. Shared by both ops.

The time and batch strides of x, h, dh, a and reset may be anything; a tensor whose channels, or whose matrices within a
step, are not contiguous is copied first.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import accumulator
from griffin_kernels.ops import _native, _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.block_diagonal_scan import _numba
from griffin_kernels.ops.block_diagonal_scan.op import Call
from griffin_kernels.ops.block_diagonal_scan_bwd.op import Call as BackwardCall
from griffin_kernels.ops.linear_scan.op import rows_of

_STREAMED = 16 * 2**20
"""Bytes of outputs from which they are written past the caches: little of them would be left there for a reader."""
_LINE = 64


def _rows(tensor: Tensor) -> Tensor:
    """[B, T, ...] itself, or a copy of it, with every step contiguous."""
    inner, expected = tensor.shape[2:], 1
    for size, stride in zip(reversed(inner), reversed(tensor.stride()[2:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.resolve_neg().contiguous()
        expected *= size
    return tensor.resolve_neg()


def _wide(state: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A state [N, D] contiguous in the accumulator's dtype."""
    return None if state is None else state.to(dtype).resolve_neg().contiguous()


def _streamed(outputs: tuple[Tensor, ...], group: int) -> bool:
    """Whether to write outputs past the caches: they are large, and every vector of them is aligned."""
    size = outputs[0].element_size()
    if sum(out.nbytes for out in outputs) < _STREAMED:
        return False
    lines = outputs[0].shape[2] * size % _LINE == 0 and group * size % _LINE == 0
    return lines and all(out.data_ptr() % _LINE == 0 for out in outputs)


def _group(width: int, size: int, sequences: int, block_d: int, itemsize: int) -> int:
    """Channels of a work item: at most about ``block_d``, and few enough that no thread is without one."""
    grain = math.lcm(size, _LINE // itemsize)
    share = -(-width * sequences // torch.get_num_threads())
    return min(-(-min(block_d, share) // grain) * grain, width)


def _scan(
    kernel: Any,
    x: Tensor,
    a: Tensor,
    h: Tensor | None,
    before: Tensor | None,
    initial: Tensor | None,
    call: Any,
    backwards: bool,
    config: Any,
    outputs: tuple[Tensor, ...],
    final: Tensor,
) -> None:
    """Run a kernel. x: x, or dh; names as in ``_numba.FIELDS``."""
    batch, time, width = x.shape
    size = a.shape[-1]
    group = _group(width, size, final.shape[0], config.block_d, x.element_size())
    groups = -(-width // group)
    items = final.shape[0] * groups
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    steps, row = x.nbytes, final.nbytes  # bytes of [B,T,D] and of [N,D] in the accumulator's dtype
    # in the order of _numba.FIELDS
    values = (
        0,
        items,
        groups,
        group,
        width,
        time,
        address("cu_seqlens", offsets, 4 * (final.shape[0] + 1)),
        backwards,
        _streamed(outputs, group),
        address("initial state", initial, row),
        address("final state", final, row),
        address("h0", before, row),
        *strided("reset", call.reset, batch * time),
        *strided("a", a, steps * size),
        *strided("x", x, steps),
        *strided("h", h, steps),
        address("output", outputs[0], steps),
        address("output", outputs[-1], steps * (1 if len(outputs) == 1 else size)),
    )
    fields = array("q", values)
    threads = _threads.threads_for(items, batch * time * width * size)
    _threads.run(_native.compiled(kernel, x.dtype, _numba.FILES, size), fields.buffer_info()[0], threads)


def forward(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    """block_diagonal_scan by groups of at most about ``block_d`` channels."""
    x, a = _rows(call.x), _rows(call.a)
    wide = accumulator(x.dtype)
    sequences = rows_of(x.shape[0], call.cu_seqlens)
    h = memory.empty(x.shape, x.dtype)
    h_last = torch.empty((sequences, x.shape[2]), dtype=wide, device="cpu")
    _scan(_numba.forward, x, a, None, None, _wide(call.h0, wide), call, call.reverse, config, (h,), h_last)
    return h, h_last


def backward(call: BackwardCall, config: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """block_diagonal_scan_bwd, likewise; the carry that leaves the first step is the gradient of h0."""
    dh, a, h = _rows(call.dh), _rows(call.a), _rows(call.h)
    wide = accumulator(a.dtype)
    sequences = rows_of(a.shape[0], call.cu_seqlens)
    dx, da = memory.empty(dh.shape, a.dtype), memory.empty(a.shape, a.dtype)
    final = torch.empty((sequences, dh.shape[2]), dtype=wide, device="cpu")
    initial, before = _wide(call.dh_last, wide), _wide(call.h0, wide)
    _scan(_numba.backward, dh, a, h, before, initial, call, not call.reverse, config, (dx, da), final)
    return dx, da, None if call.h0 is None else final
