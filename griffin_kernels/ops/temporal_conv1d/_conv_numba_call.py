"""Calls the compiled kernels of _conv_numba.py: outputs, addresses, threads. Shared by both ops.

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
from griffin_kernels.ops.temporal_conv1d import _conv_numba, _conv_numba_active
from griffin_kernels.ops.temporal_conv1d.op import Call, new_state
from griffin_kernels.ops.temporal_conv1d_bwd.op import Call as BackwardCall
from griffin_kernels.ops.temporal_conv1d_bwd.op import through_state

_KERNELS = native.Family(_conv_numba.Fields, _conv_numba_active.FILES)


def groups_of(batch: int, time: int, chunk: int) -> tuple[int, int, int]:
    """(groups, slots in a group, chunks in a batch row): pieces of ``chunk`` steps, or as many short batch rows."""
    chunks, span = -(-time // chunk), max(1, chunk // max(time, 1))
    return -(-batch * chunks // span), span, chunks


def _run(kernel: Any, call: Any, config: Any, out: Tensor, **own: Tensor | None) -> None:
    """Run a kernel. call: of either op, x with contiguous channels. out: y, or dx.

    own: residual; dy, leaving (what reaches x through the new state), dstate and sums.
    """
    wide = accumulator(call.x.dtype)
    bias = None if call.bias is None else native.rows(call.bias.to(wide))
    x, weight, segment_pos = call.x, native.rows(call.weight.to(wide)), call.segment_pos
    state, leaving = (None if rows is None else native.rows(rows) for rows in (call.state, own.get("leaving")))
    (batch, time, width), taps, size = x.shape, weight.shape[0], x.itemsize
    chunk, block = config.block_t, config.block_d
    groups, span, chunks = groups_of(batch, time, chunk)
    blocks = -(-width // block)
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.long().contiguous()
    sequences = batch if offsets is None else offsets.shape[0] - 1
    states = size * sequences * (taps - 1) * width  # bytes
    fields = _KERNELS.fields(
        x=strided("x", x, x.nbytes),
        state=strided("state", state, states),
        weight=strided("weight", weight, wide.itemsize * taps * width)[:2],
        positions=strided("segment_pos", segment_pos, 8 * batch * time),
        residual=strided("residual", own.get("residual"), x.nbytes),
        dy=strided("dy", own.get("dy"), x.nbytes),
        leaving=strided("dnew_state", leaving, states),
        items=groups * blocks,
        slots=batch * chunks,
        span=span,
        chunks=chunks,
        chunk=chunk,
        blocks=blocks,
        block=block,
        rows=config.tile,
        width=width,
        time=time,
        stream=x.nbytes >= native.STREAMED and native.in_lines(block, out),
        bias=address("bias", bias, wide.itemsize * width),
        offsets=address("cu_seqlens", offsets, 8 * (sequences + 1)),
        sequences=0 if offsets is None else sequences,
        out=address("output", out, x.nbytes),
        dstate=address("dstate", own.get("dstate"), states),
        sums=address("sums", own.get("sums"), wide.itemsize * groups * (taps + 1) * width),
    )
    threads = _threads.threads_for(groups * blocks, batch * time * width)
    _KERNELS.run(x.dtype, taps, fields, (kernel, threads))


def forward(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    """temporal_conv1d in chunks of time, blocks of channels and tiles of steps."""
    after = new_state(call.x, call.state, call.segment_pos, call.cu_seqlens, call.weight.shape[0])
    return output(call, config), after


def output(call: Call, config: Any) -> Tensor:
    """y of temporal_conv1d."""
    x = native.rows(call.x)
    y = memory.empty(x.shape, x.dtype)
    if call.residual is None:
        _run(_conv_numba.FORWARD[call.activation], call._replace(x=x), config, y)
    else:
        kernel = _conv_numba.ADDED[call.activation]
        _run(kernel, call._replace(x=x), config, y, residual=native.rows(call.residual))
    return y


def backward(call: BackwardCall, config: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """temporal_conv1d_bwd, likewise."""
    x, state, taps = native.rows(call.x), call.state, call.weight.shape[0]
    batch, time, width = x.shape
    if state is not None and call.cu_seqlens is not None:
        # the state of a sequence without steps meets no gradient: not even a factor of zero, which inf would make NaN
        state = state.masked_fill((call.cu_seqlens.diff() == 0)[:, None, None], 0.0)
    dx = memory.empty(x.shape, x.dtype)
    dstate = None if state is None else torch.empty(state.shape, dtype=x.dtype, device="cpu")
    groups, _, _ = groups_of(batch, time, config.block_t)
    sums = torch.zeros((groups, taps + 1, width), dtype=accumulator(x.dtype), device="cpu")
    kernel, given = _conv_numba_active.BACKWARD[call.activation], call._replace(x=x, state=state)
    own = {"dy": native.rows(call.dy), "leaving": through_state(call), "dstate": dstate, "sums": sums}
    _run(kernel, given, config, dx, **own)
    total = sums.sum(0)  # [K+1, D]
    dbias = None if call.bias is None else total[taps].to(call.bias.dtype, copy=True)
    return dx, total[:taps].to(call.weight.dtype, copy=True), dbias, dstate
