"""Calls the compiled kernels of _numba.py: outputs, addresses, threads. Shared by both ops.

Strides of time and batch may be anything; a tensor whose channels are not contiguous is copied first.
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
from griffin_kernels.ops.temporal_conv1d import _numba

_STREAMED = 16 * 2**20
"""Bytes of output from which it is written past the caches: little of it would be left there for a reader."""
_LINE = 64


def rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, with contiguous channels."""
    if (tensor.stride(-1) != 1 and tensor.shape[-1] != 1) or tensor.is_neg():
        return tensor.resolve_neg().contiguous()
    return tensor


def _streamed(out: Tensor, block: int) -> bool:
    """Whether to write [B,T,D] past the caches: it is large, and every vector of it fills a line."""
    if out.nbytes < _STREAMED:
        return False
    row, piece = out.shape[2] * out.element_size(), block * out.element_size()
    return row % _LINE == 0 and piece % _LINE == 0 and out.data_ptr() % _LINE == 0


def groups_of(batch: int, time: int, chunk: int) -> tuple[int, int, int]:
    """(groups, slots in a group, chunks in a batch row): pieces of ``chunk`` steps, or as many short batch rows."""
    chunks, span = -(-time // chunk), max(1, chunk // max(time, 1))
    return -(-batch * chunks // span), span, chunks


def run(
    kernel: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    out: Tensor,
    dy: Tensor | None,
    leaving: Tensor | None,
    dstate: Tensor | None,
    sums: Tensor | None,
    chunk: int,
    block: int,
    tile: int,
) -> None:
    """Run a kernel on tensors with contiguous channels; names as in ``_numba.FIELDS``."""
    batch, time, width = x.shape
    taps = weight.shape[0]
    groups, span, chunks = groups_of(batch, time, chunk)
    blocks = -(-width // block)
    offsets = None if cu_seqlens is None else cu_seqlens.long().contiguous()
    sequences, size = batch if offsets is None else offsets.shape[0] - 1, x.itemsize
    # in the order of _numba.FIELDS
    values = (
        0,
        groups * blocks,
        batch * chunks,
        span,
        chunks,
        chunk,
        blocks,
        block,
        tile,
        width,
        time,
        _streamed(out, block),
        *strided("x", x, x.nbytes),
        *strided("state", state, size * sequences * (taps - 1) * width),
        *strided("weight", weight, size * taps * width)[:2],
        address("bias", bias, size * width),
        *strided("segment_pos", segment_pos, 8 * batch * time),
        address("cu_seqlens", offsets, 8 * (sequences + 1)),
        0 if offsets is None else sequences,
        address("output", out, x.nbytes),
        *strided("dy", dy, x.nbytes),
        *strided("dnew_state", leaving, size * sequences * (taps - 1) * width),
        address("dstate", dstate, size * (sequences * (taps - 1) * width)),
        address("sums", sums, accumulator(x.dtype).itemsize * (groups * (taps + 1) * width)),
    )
    fields = array("q", values)
    threads = _threads.threads_for(groups * blocks, batch * time * width)
    _threads.run(_native.compiled(kernel, x.dtype, _numba.FILES, taps), fields.buffer_info()[0], threads)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    state: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk: int,
    block: int,
    tile: int,
) -> Tensor:
    """y of temporal_conv1d in chunks of time, blocks of channels and tiles of steps."""
    x = rows(x)
    before = None if state is None else rows(state)
    y = memory.empty(x.shape, x.dtype)
    run(
        _numba.forward,
        x,
        rows(weight),
        rows(bias),
        before,
        segment_pos,
        cu_seqlens,
        y,
        None,
        None,
        None,
        None,
        chunk,
        block,
        tile,
    )
    return y


def backward(
    dy: Tensor,
    leaving: Tensor | None,
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk: int,
    block: int,
    tile: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dx, dweight, dbias and dstate, likewise. leaving: the new state's gradient, zero where that holds zeros."""
    x = rows(x)
    batch, time, width = x.shape
    taps = weight.shape[0]
    if state is not None and cu_seqlens is not None:
        # the state of a sequence without steps meets no gradient: not even a factor of zero, which inf would make NaN
        state = state.masked_fill((cu_seqlens.diff() == 0)[:, None, None], 0.0)
    before = None if state is None else rows(state)
    dx = memory.empty(x.shape, x.dtype)
    dstate = None if state is None else torch.empty(state.shape, dtype=x.dtype, device="cpu")
    groups, _, _ = groups_of(batch, time, chunk)
    sums = torch.zeros((groups, taps + 1, width), dtype=accumulator(x.dtype), device="cpu")
    run(
        _numba.backward,
        x,
        rows(weight),
        None,
        before,
        segment_pos,
        cu_seqlens,
        dx,
        rows(dy),
        None if leaving is None else rows(leaving),
        dstate,
        sums,
        chunk,
        block,
        tile,
    )
    total = sums.sum(0).to(x.dtype)  # [K+1, D]
    return dx, total[:taps].clone(), total[taps].clone(), dstate
