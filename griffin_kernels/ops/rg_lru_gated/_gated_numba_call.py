"""Calls the compiled kernels of _gated_numba.py: outputs, addresses, threads.

Batch and time strides of inputs may be anything; a tensor whose channels are not contiguous is copied first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops._native import CACHE_LINE
from griffin_kernels.ops._native_rows import STREAM
from griffin_kernels.ops.rg_lru._lru_numba_call import carry_of, floats, rate_of
from griffin_kernels.ops.rg_lru.op import is_fresh
from griffin_kernels.ops.rg_lru_gated import _gated_numba

_KERNELS = native.Family(_gated_numba.Fields, _gated_numba.FILES)

_WORK = 8
"""Elements of a plain scan that cost as much as one here: what ``_threads`` counts in."""


def _block(width: int, sequences: int, block_d: int, itemsize: int) -> int:
    """Channels of a work item: at most about ``block_d``, and so few that no thread is without one."""
    grain = CACHE_LINE // itemsize
    share = -(-width * sequences // torch.get_num_threads())
    return min(-(-min(block_d, share) // grain) * grain, width)


def _run(kernel: Any, call: Any, config: Any, state: Tensor, outputs: tuple[Tensor, ...], **backward: Tensor) -> None:
    """Run a kernel on the call's sequences. backward: before, recent and total, as in ``Fields``."""
    x = call.x
    (batch, time, width), sequences, size = x.shape, state.shape[0], state.nbytes
    block = _block(width, sequences, config.block_d, x.itemsize)
    blocks = -(-width // block)
    # kept until the kernel has run
    inputs = [native.rows(value) for value in (x, call.input_gate, call.recurrence_gate)]
    upstream = [native.rows(value) for value in (call.dy, call.y)] if backward else [None, None]
    reset = None if call.segment_pos is None else call.segment_pos == 0
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    natural_rate = rate_of(call.a_param, call.c)
    rate, natural_rate = (natural_rate / math.log(2)).float(), natural_rate.float()
    past = sum(out.nbytes for out in outputs) >= native.STREAMED and native.in_lines(block, *outputs)
    names = ("x", "input_gate", "recurrence_gate", "dy", "y")
    given = [strided(name, value, x.nbytes) for name, value in zip(names, (*inputs, *upstream), strict=True)]
    fields = _KERNELS.fields(
        reset=strided("reset", reset, batch * time),
        **dict(zip(("x", "z_i", "z_r", "dy", "y"), given, strict=True)),
        items=sequences * blocks,
        blocks=blocks,
        block=block,
        width=width,
        time=time,
        offsets=address("cu_seqlens", offsets, 4 * (sequences + 1)),
        fresh=is_fresh(call.h0, call.segment_pos),
        hints=STREAM if past else 0,
        rate=address("decay", rate, 4 * width),
        natural_rate=address("decay", natural_rate, 4 * width),
        state=address("state", state, size),
        **{name: address(name, backward.get(name), size) for name in ("before", "recent", "total")},
        out=address("output", outputs[0], x.nbytes),
        dz_i=address("dinput_gate", outputs[1], x.nbytes) if backward else 0,
        dz_r=address("drecurrence_gate", outputs[2], x.nbytes) if backward else 0,
    )
    threads = _threads.threads_for(sequences * blocks, _WORK * batch * time * width)
    _KERNELS.run(x.dtype, None, fields, (kernel, threads))


def forward(call: Any, config: Any) -> tuple[Tensor, Tensor]:
    """rg_lru_gated by blocks of at most ``block_d`` channels."""
    out, state = memory.empty(call.x.shape, call.x.dtype), carry_of(call, call.h0)
    if out.numel():
        _run(_gated_numba.forward, call, config, state, (out,))
    return out, state


def backward(call: Any, config: Any) -> tuple[Tensor | None, ...]:
    """rg_lru_gated_bwd, likewise."""
    x, a_param = call.x, call.a_param
    outputs = tuple(memory.empty(x.shape, x.dtype) for _ in range(3))
    state = carry_of(call, call.dh_last)
    recent, total, none = (torch.zeros_like(state) for _ in range(3))
    if x.numel():
        before = none if call.h0 is None else floats(call.h0)
        _run(_gated_numba.backward, call, config, state, outputs, before=before, recent=recent, total=total)
    through_r = total.sum(0) * torch.sigmoid(a_param.float())
    return (*outputs, through_r.mul_(-call.c).to(a_param.dtype), None if call.h0 is None else state)
