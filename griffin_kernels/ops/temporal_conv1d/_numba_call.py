"""Calls the compiled kernels of _numba.py: outputs, addresses, threads. Shared by both ops.

Strides of time and batch may be anything; a tensor whose channels are not contiguous is copied first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import accumulator
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops._native import Strided
from griffin_kernels.ops.temporal_conv1d import _numba

_KERNELS = native.Family(_numba.Fields, _numba.FILES)


def groups_of(batch: int, time: int, chunk: int) -> tuple[int, int, int]:
    """(groups, slots in a group, chunks in a batch row): pieces of ``chunk`` steps, or as many short batch rows."""
    chunks, span = -(-time // chunk), max(1, chunk // max(time, 1))
    return -(-batch * chunks // span), span, chunks


def _run(
    kernel: Any,
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    out: Tensor,
    cut: tuple[int, ...],
    bias: int = 0,
    dy: Strided = native.NOWHERE,
    leaving: Strided = native.NOWHERE,
    dstate: int = 0,
    sums: int = 0,
) -> None:
    """Run a kernel on tensors with contiguous channels; others as in ``_numba.Fields``. cut: chunk, block and rows."""
    (batch, time, width), taps, size = x.shape, weight.shape[0], x.itemsize
    chunk, block, tile = cut
    groups, span, chunks = groups_of(batch, time, chunk)
    blocks = -(-width // block)
    offsets = None if cu_seqlens is None else cu_seqlens.long().contiguous()
    sequences = batch if offsets is None else offsets.shape[0] - 1
    before = size * sequences * (taps - 1) * width  # bytes of the states
    fields = _KERNELS.fields(
        x=strided("x", x, x.nbytes),
        state=strided("state", state, before),
        weight=strided("weight", weight, size * taps * width)[:2],
        positions=strided("segment_pos", segment_pos, 8 * batch * time),
        dy=dy,
        leaving=leaving,
        items=groups * blocks,
        slots=batch * chunks,
        span=span,
        chunks=chunks,
        chunk=chunk,
        blocks=blocks,
        block=block,
        rows=tile,
        width=width,
        time=time,
        stream=x.nbytes >= native.STREAMED and native.in_lines(block, out),
        bias=bias,
        offsets=address("cu_seqlens", offsets, 8 * (sequences + 1)),
        sequences=0 if offsets is None else sequences,
        out=address("output", out, x.nbytes),
        dstate=dstate,
        sums=sums,
    )
    threads = _threads.threads_for(groups * blocks, batch * time * width)
    _KERNELS.run(x.dtype, taps, fields, (kernel, threads))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    state: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *cut: int,
) -> Tensor:
    """y of temporal_conv1d. cut: steps of a chunk of time, channels of a block, steps of a tile."""
    x, before = native.rows(x), None if state is None else native.rows(state)
    y = memory.empty(x.shape, x.dtype)
    bias = native.rows(bias)
    bias_at = address("bias", bias, x.itemsize * x.shape[2])
    _run(_numba.forward, x, native.rows(weight), before, segment_pos, cu_seqlens, y, cut, bias_at)
    return y


def backward(
    dy: Tensor,
    leaving: Tensor | None,
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *cut: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dx, dweight, dbias and dstate, likewise. leaving: the new state's gradient, zero where that holds zeros."""
    x = native.rows(x)
    batch, time, width = x.shape
    taps = weight.shape[0]
    if state is not None and cu_seqlens is not None:
        # the state of a sequence without steps meets no gradient: not even a factor of zero, which inf would make NaN
        state = state.masked_fill((cu_seqlens.diff() == 0)[:, None, None], 0.0)
    before = None if state is None else native.rows(state)
    dy, leaving = native.rows(dy), None if leaving is None else native.rows(leaving)
    dx = memory.empty(x.shape, x.dtype)
    dstate = None if state is None else torch.empty(state.shape, dtype=x.dtype, device="cpu")
    groups, _, _ = groups_of(batch, time, cut[0])
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = x.itemsize * sequences * (taps - 1) * width  # bytes
    sums = torch.zeros((groups, taps + 1, width), dtype=accumulator(x.dtype), device="cpu")
    _run(
        _numba.backward,
        x,
        native.rows(weight),
        before,
        segment_pos,
        cu_seqlens,
        dx,
        cut,
        dy=strided("dy", dy, x.nbytes),
        leaving=strided("dnew_state", leaving, states),
        dstate=address("dstate", dstate, states),
        sums=address("sums", sums, sums.nbytes),
    )
    total = sums.sum(0).to(x.dtype)  # [K+1, D]
    return dx, total[:taps].clone(), total[taps].clone(), dstate
