"""Calls the code of _lru_extend_numba.py: addresses, scratch, threads. Of rg_lru_extend and recurrent_block_extend.

x, y and the pools may have any strides of batch, time and rows; a tensor whose channels are not contiguous is copied
first, and a pool copied back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.ops import _native, _threads
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.rg_lru._lru_numba_call import plain
from griffin_kernels.ops.rg_lru.op import gates_of
from griffin_kernels.ops.rg_lru_extend import _lru_extend_numba
from griffin_kernels.ops.rg_lru_extend.op import Call

_KERNELS = native.Family(_lru_extend_numba.Fields, _lru_extend_numba.FILES)
_ROWS_PER_READ = 4
"""Tokens whose products take as long as reading the weights."""


def recurrence(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    """rg_lru_extend."""
    return run(call, config), call.states


def run(
    call: Any,
    config: Any,
    y: Tensor | None = None,
    windows: Tensor | None = None,
    convolution: tuple[Tensor, ...] = (),
) -> Tensor:
    """The output [B,T,D] in x's dtype; the pools are overwritten.

    With a block: its y, the pool of its convolution's windows [P,K-1,D] with contiguous channels, its taps and their
    bias.
    """
    x, states = native.rows(call.x), native.rows(call.states)
    a_param, input_weight, input_bias, recurrence_weight, recurrence_bias = gates_of(call)
    vectors, dtype = [a_param, input_bias, recurrence_bias, *convolution], x.dtype
    wide = _native.WIDE if any([parameter.dtype is not dtype for parameter in vectors]) else None
    vectors = [plain(parameter.float() if wide else parameter) for parameter in vectors]
    weights = plain(input_weight), plain(recurrence_weight)
    (batch, time, width), (blocks, n), size, own = x.shape, input_bias.shape, x.itemsize, vectors[0].itemsize
    count, pool, taps = call.slots.shape[0], states.shape[0], convolution[0].shape[0] if convolution else 0
    out = memory.empty(x.shape, dtype)
    if out.numel() == 0:
        return out
    part = min(config.block_d, n)
    parts = -(-n // part)
    items, rows = blocks * parts, batch * time
    threads = _threads.threads_for(items, 2 * n * width * max(1, rows // _ROWS_PER_READ))
    floats = _lru_extend_numba.scratch_floats(n, part, rows, taps)
    scratch_bytes = -(-4 * floats // 4096) * 4096
    scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8, device="cpu")
    slots, keep = call.slots.contiguous(), call.keep.contiguous()
    positions = None if call.segment_pos is None else call.segment_pos.contiguous()
    offsets = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    kept = size * (taps - 1) * width if convolution else 0
    window = torch.empty((count, taps - 1, width), dtype=dtype, device="cpu") if convolution else None
    fields = _KERNELS.fields(
        x=strided("x", x, size * rows * width),
        y=strided("y", y, size * rows * width),
        pool=strided("states", states, 4 * pool * width),
        window=strided("window", window, kept * count),
        windows=strided("conv_states", windows, kept * pool),
        gates=(
            address("input_gate_weight", weights[0], size * width * n),
            address("input_gate_bias", vectors[1], own * width),
            address("recurrence_gate_weight", weights[1], size * width * n),
            address("recurrence_gate_bias", vectors[2], own * width),
        ),
        workers=0,
        items=items,
        parts=parts,
        part=part,
        n=n,
        rows=rows,
        time=time,
        width=width,
        sequences=count,
        slots=address("slots", slots, 8 * count),
        keep=address("keep", keep, 8 * rows),
        positions=address("segment_pos", positions, 8 * rows),
        offsets=address("cu_seqlens", offsets, 4 * (count + 1)),
        out=address("output", out, size * rows * width),
        a_param=address("a_param", vectors[0], own * width),
        taps=taps,
        conv_weight=address("conv_weight", vectors[3] if convolution else None, own * taps * width),
        conv_bias=address("conv_bias", vectors[4] if convolution else None, own * width),
        scratch=address("scratch", scratch, threads * scratch_bytes),
        scratch_bytes=scratch_bytes,
    )
    phases = [(_lru_extend_numba.gather, 1)] if taps > 1 else []
    _KERNELS.run(dtype, wide, fields, *phases, (_lru_extend_numba.extend, threads))
    if states is not call.states:
        call.states.copy_(states)
    return out
