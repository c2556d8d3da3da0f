"""Calls the code of _lru_step_numba.py: addresses, scratch, threads. Of rg_lru_step and recurrent_block_step.

Rows of x, y and the states may lie anywhere; a tensor whose channels are not contiguous is copied first, and a state
copied back.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.ops import _native, _threads
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.recurrent_block_step.op import Call as BlockCall
from griffin_kernels.ops.rg_lru._lru_numba_call import plain
from griffin_kernels.ops.rg_lru.op import gates_of
from griffin_kernels.ops.rg_lru_step import _lru_step_numba
from griffin_kernels.ops.rg_lru_step.op import Call

_KERNELS = native.Family(_lru_step_numba.Fields, _lru_step_numba.FILES)
_KEPT = threading.local()
"""What calls that are given ``out`` work in."""
_ROWS_PER_READ = 4
"""Batch rows whose products take as long as reading the weights."""


def recurrence(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    """rg_lru_step."""
    return _run(call, config), call.h


def block(call: BlockCall, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """recurrent_block_step: a convolution before the gates, and the product with gelu(y)."""
    kept = native.rows(call.conv_state)
    out = _run(call, config, native.rows(call.y), kept, call.conv_weight, call.conv_bias)
    if kept is not call.conv_state:
        call.conv_state.copy_(kept)
    return out, call.conv_state, call.h


def _buffer(name: str, size: int, dtype: torch.dtype) -> Tensor:
    """Memory [size] for one call: that of this thread's last one where it is enough, so that nothing is allocated."""
    kept: Tensor | None = getattr(_KEPT, name, None)
    if kept is None or kept.shape[0] < size:
        kept = torch.empty(size, dtype=dtype, device="cpu")
        setattr(_KEPT, name, kept)
    return kept if kept.shape[0] == size else kept[:size]


def _run(
    call: Any,
    config: Any,
    y: Tensor | None = None,
    kept: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
) -> Tensor:
    """The token's output [B, D] in x's dtype; states are overwritten. With a block: its y, its convolution's state."""
    x, h = native.rows(call.x), native.rows(call.h)
    a_param, input_weight, input_bias, recurrence_weight, recurrence_bias = gates_of(call)
    vectors, dtype, wide = [a_param, input_bias, recurrence_bias], x.dtype, None
    if conv_weight is not None and conv_bias is not None:
        vectors += [conv_weight, conv_bias]
    for parameter in vectors:
        if parameter.dtype is not dtype:
            wide = _native.WIDE
    if wide:
        vectors = [parameter.float() for parameter in vectors]
    # what is plain already costs no call
    tensors = [
        t if t.is_contiguous() and not t.is_neg() else plain(t) for t in (input_weight, recurrence_weight, *vectors)
    ]
    input_weight, recurrence_weight, a_param, input_bias, recurrence_bias, *convolution = tensors
    conv_weight, conv_bias = convolution or (None, None)
    (batch, width), (blocks, n), size, own = x.shape, input_bias.shape, x.itemsize, a_param.itemsize
    pool, taps = h.shape[0], 0 if conv_weight is None else conv_weight.shape[0]
    part = min(config.block_d, n)
    parts = -(-n // part)
    items = blocks * parts
    given = call.out
    # a call without ``out`` should cost no more than a look at it
    out = torch.empty(batch, width, dtype=x.dtype, device="cpu") if given is None else native.target(given, x)
    threads = _threads.threads_for(items, 2 * n * width * max(1, batch // _ROWS_PER_READ))
    scratch_bytes = -(-4 * _lru_step_numba.scratch_floats(n, part, batch) // 4096) * 4096
    finished = None
    if given is None:
        scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8, device="cpu")
        if parts > 1:
            finished = torch.zeros(blocks, dtype=torch.int64, device="cpu")
    else:
        scratch = _buffer("scratch", threads * scratch_bytes, torch.uint8)
        if parts > 1:
            finished = _buffer("finished", blocks, torch.int64).zero_()
    positions = None if call.positions is None else call.positions.contiguous()
    slots = None if call.slots is None else call.slots.contiguous()
    dst_slots = None if call.dst_slots is None else call.dst_slots.contiguous()
    fields = _KERNELS.fields(
        x=strided("x", x, size * batch * width),
        y=strided("y", y, size * batch * width),
        h=strided("h", h, 4 * pool * width),
        state=strided("conv_state", kept, size * pool * (taps - 1) * width),
        gates=(
            address("input_gate_weight", input_weight, size * width * n),
            address("input_gate_bias", input_bias, own * width),
            address("recurrence_gate_weight", recurrence_weight, size * width * n),
            address("recurrence_gate_bias", recurrence_bias, own * width),
        ),
        workers=0,
        items=items,
        parts=parts,
        part=part,
        n=n,
        batch=batch,
        width=width,
        positions=address("positions", positions, 8 * batch),
        slots=address("slots", slots, 8 * batch),
        dst_slots=address("dst_slots", dst_slots, 8 * batch),
        pad_slot=call.pad_slot,
        out=address("output", out, size * batch * width),
        out_step=width if given is None else out.stride(0),
        a_param=address("a_param", a_param, own * width),
        taps=taps,
        conv_weight=address("conv_weight", conv_weight, own * taps * width),
        conv_bias=address("conv_bias", conv_bias, own * width),
        scratch=address("scratch", scratch, threads * scratch_bytes),
        scratch_bytes=scratch_bytes,
        finished=address("finished", finished, 8 * blocks),
    )
    _KERNELS.run(dtype, wide, fields, (_lru_step_numba.step, threads))
    if h is not call.h:
        call.h.copy_(h)
    return out if given is None else native.delivered(out, given)
