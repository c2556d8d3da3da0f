"""Calls the compiled kernels of _numba.py: outputs, addresses, threads. Shared by both ops and both algorithms.

The time and batch strides of x, a, h, dh and reset may be anything; a tensor whose channels are not contiguous is
copied first.
"""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import accumulator
from griffin_kernels.ops import _native, _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops._native_rows import STREAM
from griffin_kernels.ops.linear_scan import _numba
from griffin_kernels.ops.linear_scan.op import Call, rows_of
from griffin_kernels.ops.linear_scan_bwd.op import Call as BackwardCall

_STREAMED = 16 * 2**20
"""Bytes of outputs from which they are written past the caches: little of them would be left there for a reader."""
_LINE = 64
_COUNTER = _numba.FIELDS.index("counter")


def _rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, with contiguous channels."""
    if (tensor.stride(-1) != 1 and tensor.shape[-1] != 1) or tensor.is_neg():
        return tensor.resolve_neg().contiguous()
    return tensor


def _wide(state: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A state [N, D] contiguous in the accumulator's dtype."""
    return None if state is None else state.to(dtype).resolve_neg().contiguous()


def _slots(cu_seqlens: Tensor, chunk: int) -> Tensor:
    """int64 [N+1]: where each packed sequence's chunks begin; a sequence has at least one."""
    counts = (cu_seqlens.diff().long() + chunk - 1).div(chunk, rounding_mode="floor").clamp(min=1)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _streamed(outputs: tuple[Tensor, ...], block: int) -> bool:
    """Whether to write outputs [B,T,D] past the caches: they are large, and every vector of them fills a line."""
    out = outputs[0]
    if len(outputs) * out.nbytes < _STREAMED:
        return False
    row, piece = out.shape[2] * out.element_size(), block * out.element_size()
    return row % _LINE == 0 and piece % _LINE == 0 and all(out.data_ptr() % _LINE == 0 for out in outputs)


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
    """Run a kernel, and the two phases before it where time is cut. x: x, or dh; names as in ``_numba.FIELDS``."""
    batch, time, width = x.shape
    sequences = final.shape[0]
    block, chunk = config.block_d, getattr(config, "chunk", None)
    blocks = -(-width // block)
    steps, row = x.nbytes, final.nbytes  # bytes of [B,T,D] and of [N,D] in the accumulator's dtype
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    chunks, slots, table, carries, products = 1, sequences, None, None, None
    if chunk is None or time <= chunk:
        chunk = time
    else:
        if offsets is None:
            chunks = -(-time // chunk)
            slots = sequences * chunks
        else:
            table = _slots(offsets, chunk)
            slots = int(table[-1])
        carries, products = torch.empty((2, slots, width), dtype=final.dtype, device="cpu")
    hints = (_numba.AHEAD if config.ahead else 0) | (STREAM if _streamed(outputs, block) else 0)
    # in the order of _numba.FIELDS
    values = (
        0,
        slots * blocks,
        blocks,
        block,
        width,
        time,
        sequences,
        chunk,
        chunks,
        address("cu_seqlens", offsets, 4 * (sequences + 1)),
        address("chunk table", table, 8 * (sequences + 1)),
        backwards,
        hints,
        h is not None,
        address("initial state", initial, row),
        address("final state", final, row),
        address("carries", carries, final.itemsize * slots * width),
        address("products", products, final.itemsize * slots * width),
        address("h0", before, row),
        *strided("reset", call.reset, batch * time),
        *strided("a", a, steps),
        *strided("x", x, steps),
        *strided("h", h, steps),
        address("output", outputs[0], steps),
        address("output", outputs[-1], steps),
    )
    fields = array("q", values)
    threads = _threads.threads_for(slots * blocks, batch * time * width)
    at, _ = fields.buffer_info()
    if carries is not None:
        _threads.run(_native.compiled(_numba.reduce, x.dtype, _numba.FILES), at, threads)
        fields[_COUNTER] = 0
        _threads.run(_native.compiled(_numba.carries, x.dtype, _numba.FILES), at, min(threads, sequences * blocks))
        fields[_COUNTER] = 0
    _threads.run(_native.compiled(kernel, x.dtype, _numba.FILES), at, threads)


def forward(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    """linear_scan by blocks of ``block_d`` channels and, where the configuration has one, chunks of that many steps."""
    x, a = _rows(call.x), _rows(call.a)
    wide = accumulator(x.dtype)
    sequences = rows_of(x.shape[0], call.cu_seqlens)
    h = memory.empty(x.shape, x.dtype)
    h_last = torch.empty((sequences, x.shape[2]), dtype=wide, device="cpu")
    initial = _wide(call.h0, wide)
    _scan(_numba.forward, x, a, None, None, initial, call, call.reverse, config, (h,), h_last)
    return h, h_last


def backward(call: BackwardCall, config: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """linear_scan_bwd, likewise; the carry that leaves the first step is the gradient of h0."""
    dh, a, h = _rows(call.dh), _rows(call.a), _rows(call.h)
    wide = accumulator(a.dtype)
    sequences = rows_of(a.shape[0], call.cu_seqlens)
    dx, da = memory.empty(a.shape, a.dtype), memory.empty(a.shape, a.dtype)
    final = torch.empty((sequences, a.shape[2]), dtype=wide, device="cpu")
    initial, before = _wide(call.dh_last, wide), _wide(call.h0, wide)
    _scan(_numba.backward, dh, a, h, before, initial, call, not call.reverse, config, (dx, da), final)
    return dx, da, None if call.h0 is None else final
