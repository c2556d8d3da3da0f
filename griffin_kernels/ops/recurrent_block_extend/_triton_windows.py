"""Windows of a convolution in a pool, on the device: gathered before it, kept after it. See ``ops/_keep.py``.

Other programs may have yet to read a row that one writes, so that what sequences start from is copied first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host, pools, tensors
from griffin_kernels.ops._triton.pools import Pool
from griffin_kernels.ops._triton.scan import span
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.recurrent_block_extend.op import Call

BLOCK_D = 64
FLAGS = 128
"""Tokens that a program asks at a time whether they are kept."""


class Inputs(NamedTuple):
    """What windows are made of: ``Rows`` of x [B,T,D] and of positions [B,T] or None; before: [N,K-1,D] contiguous."""

    x: Any
    positions: Any
    before: Any


@triton.jit
def gather_windows(pool, out, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """out: [N,ROWS,D] contiguous, zeros where a sequence has no state. Grid: N * ceil(D / block_d)."""
    sequence, channels = tensors.own_channels(tl.program_id(0), D, BLOCK_D)
    slot = pools.start(pool, sequence)
    rows = tensors.at(pool.states, slot, 0, 1)
    loaded = tensors.load_rows(rows, channels, tl.where(slot >= 0, ROWS, 0), 0.0, ROWS, True)
    target = tensors.dense(out, tl.cast(sequence, tl.int64) * ROWS, D, 1)
    for k in tl.static_range(ROWS):
        tensors.store_row(target, k, loaded[k], channels, ROWS, True)


@triton.jit
def put_window(pool, inputs, row, sequence, step, channels, D: tl.constexpr, ROWS: tl.constexpr):
    """The last ROWS inputs at a step of a sequence, into a row of the pool. inputs: at the sequence's first step."""
    reach = ROWS
    if inputs.positions is not None:
        reach = tl.load(inputs.positions.at + step * far(inputs.positions.step))
    for k in tl.static_range(ROWS):
        at = step - (ROWS - 1) + k
        place = inputs.x.at + tl.cast(at, tl.int64) * far(inputs.x.step) + channels.columns * inputs.x.channel
        own = tl.load(place, mask=channels.inside & (at >= 0), other=0.0)
        place = inputs.before + (tl.cast(sequence, tl.int64) * ROWS + ROWS + at) * D + channels.columns
        earlier = tl.load(place, mask=channels.inside & (at < 0), other=0.0)
        value = tl.where(at >= 0, own, earlier)
        value = tl.where(reach >= ROWS - 1 - k, value, 0.0)
        target = pool.states.at + tl.cast(row, tl.int64) * pool.states.batch + k * far(pool.states.step)
        tl.store(target + channels.columns * pool.states.channel, value, mask=channels.inside)


@triton.jit(do_not_specialize=["T"])
def keep_windows(
    pool, inputs, cu_seqlens, T, D: tl.constexpr, ROWS: tl.constexpr, FLAGS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The windows of a sequence that are kept. Grid: N * ceil(D / block_d)."""
    sequence, channels = tensors.own_channels(tl.program_id(0), D, BLOCK_D)
    batch, first, count = span(sequence, cu_seqlens, T, False)
    pool = pools.pool_at(pool, batch, first)
    positions = tensors.at(inputs.positions, batch, first, 1)
    inputs = Inputs(tensors.at(inputs.x, batch, first, 1), positions, inputs.before)
    for begin in range(0, count, FLAGS):
        steps = begin + tl.arange(0, FLAGS)
        place = pool.places.at + steps.to(tl.int64) * far(pool.places.step)
        rows = tl.load(place, mask=steps < count, other=-1)
        if tl.max(pools.has(pool, rows).to(tl.int32), axis=0) > 0:
            for u in range(tl.minimum(FLAGS, count - begin)):
                row = tl.load(pool.places.at + tl.cast(begin + u, tl.int64) * far(pool.places.step))
                if pools.has(pool, row):
                    put_window(pool, inputs, row, sequence, begin + u, channels, D, ROWS)


def _launch(kernel: Any, call: Call, args: dict[str, Any], **constexprs: int) -> Launch:
    width, rows = call.x.shape[2], call.conv_weight.shape[0] - 1
    windows = call.conv_states
    pool = Pool(tensors.rows(windows), windows.shape[0], call.slots.contiguous(), tensors.rows(call.keep))
    bits = host.load_bits((call.x, windows), BLOCK_D // 32)
    return Launch(
        kernel=kernel,
        grid=(call.slots.shape[0] * triton.cdiv(width, BLOCK_D),),
        args={"pool": pool} | args,
        constexprs={"D": width, "ROWS": rows, "BLOCK_D": BLOCK_D, **constexprs},
        num_warps=1,
        tile=rows * BLOCK_D,
        claims=Claims(load_bits=bits),
    )


def around(call: Call) -> tuple[Tensor, list[Launch], list[Launch]]:
    """(windows [N,K-1,D] that sequences start from, launches that fill it, launches that keep windows afterwards)."""
    rows, width = call.conv_states.shape[1:]
    before = torch.empty((call.slots.shape[0], rows, width), dtype=call.x.dtype, device=call.x.device)
    if rows == 0:
        return before, [], []
    inputs = Inputs(tensors.rows(call.x), tensors.rows(call.segment_pos), before)
    args = {"inputs": inputs, "cu_seqlens": call.cu_seqlens, "T": call.x.shape[1]}
    return before, [_launch(gather_windows, call, {"out": before})], [_launch(keep_windows, call, args, FLAGS=FLAGS)]
