"""What the one-token Triton kernels share: rows of a pool, the convolution's sum, the shift of what is kept; a launch.

A kernel works on any shape of rows by channels: offsets of rows and of channels are given apart and broadcast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops import _activation
from griffin_kernels.ops._triton import host, tensors
from griffin_kernels.ops._triton.activations import activated
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.strides import constant, far
from griffin_kernels.ops.temporal_conv1d._triton_conv import ConvSizes
from griffin_kernels.ops.temporal_conv1d_step.op import Call


class Convolution(NamedTuple):
    """weight: [K,D], bias: [D] or None, contiguous. state: rows of [P,K-1,D], the inputs that are kept."""

    weight: Any
    bias: Any
    state: Any


class Indices(NamedTuple):
    """positions, slots, others: [B] int64 or None, and their strides in elements. pad: a slot that pads, or None.

    others: rows of the pool that new states are for, where they are not the old ones'.
    """

    positions: Any
    slots: Any
    others: Any
    position_step: Any
    slot_step: Any
    other_step: Any
    pad: Any


class Tokens(NamedTuple):
    """Rows of the batch, any shape. row: int64. exists: row < B. slot: row of the pool. works: does not only pad.

    target: row of the pool for the new state. keeps: works and has one.
    """

    row: Any
    exists: Any
    slot: Any
    works: Any
    position: Any
    target: Any
    keeps: Any


@bundling
def tokens_of(row, indices, B, P):
    """The tokens of batch rows ``row``.

    A slot that the pool of P rows does not have is one that only pads: nothing outside the pool is touched.
    """
    exists = row < B
    slot, works, position = row.to(tl.int64), exists, None
    if indices.slots is not None:
        slot = tl.load(indices.slots + row * far(indices.slot_step), mask=exists, other=-1).to(tl.int64)
        works = exists & (slot >= 0) & (slot < P)
        if indices.pad is not None:
            works = works & (slot != indices.pad)
    target, keeps = slot, works
    if indices.others is not None:
        target = tl.load(indices.others + row * far(indices.other_step), mask=exists, other=-1).to(tl.int64)
        keeps = works & (target >= 0) & (target < P)
        if indices.pad is not None:
            keeps = keeps & (target != indices.pad)
    if indices.positions is not None:
        position = tl.load(indices.positions + row * far(indices.position_step), mask=exists, other=0)
    return Tokens(row.to(tl.int64), exists, slot, works, position, target, keeps)


@triton.jit
def newest(x, tokens, channel, there):
    """What enters. channel: any shape that broadcasts to the rows'. there: channels that exist."""
    return tl.load(x.at + (tokens.row * x.row + channel * x.channel), mask=there & tokens.works, other=0.0)


@triton.jit
def load_kept(conv, tokens, channel, there, TAP: tl.constexpr, TAPS: tl.constexpr):
    """The inputs that weight row TAP < K-1 multiplies, zeros where they are of an earlier document."""
    inside = there & tokens.works
    if tokens.position is not None:
        inside = inside & (tokens.position >= TAPS - 1 - TAP)
    kept = conv.state.at + (tokens.slot * conv.state.batch + channel * conv.state.channel)
    return tl.load(kept + TAP * far(conv.state.step), mask=inside, other=0.0)


@triton.jit
def convolve(current, conv, tokens, channel, there, D: tl.constexpr, TAPS: tl.constexpr, ACC: tl.constexpr):
    """y in ACC. current: the newest input."""
    total = tl.load(conv.weight + (TAPS - 1) * D + channel, mask=there, other=0.0).to(ACC) * current.to(ACC)
    if conv.bias is not None:
        total += tl.load(conv.bias + channel, mask=there, other=0.0).to(ACC)
    for tap in tl.static_range(TAPS - 1):
        value = load_kept(conv, tokens, channel, there, tap, TAPS).to(ACC)
        total += tl.load(conv.weight + tap * D + channel, mask=there, other=0.0).to(ACC) * value
    return total


@triton.jit
def keep(current, conv, tokens, channel, there, TAPS: tl.constexpr):
    """Move the kept inputs a row up and put ``current`` last; those of an earlier document become zeros.

    Every thread of the program has read what it wants of them before any of it is overwritten.
    """
    rows = ()
    for tap in tl.static_range(1, TAPS - 1):
        rows += (load_kept(conv, tokens, channel, there, tap, TAPS),)
    rows += (current,)
    tl.debug_barrier()
    kept = conv.state.at + (tokens.target * conv.state.batch + channel * conv.state.channel)
    for tap in tl.static_range(TAPS - 1):
        tl.store(kept + tap * far(conv.state.step), rows[tap].to(kept.dtype.element_ty), mask=there & tokens.keeps)


@triton.jit(do_not_specialize=["B", "P"])
def temporal_conv1d_step(x, conv, indices, y, B, P, SIZES: tl.constexpr):
    """x, y: [B,D]; positions, slots: [B]. y is 0 in rows that only pad.

    Grid: ceil(B / block_b) * ceil(D / block_d), channels fastest. BLOCK_T: batch rows of a program.
    """
    D: tl.constexpr = SIZES.D
    TAPS: tl.constexpr = SIZES.TAPS
    BLOCKS: tl.constexpr = (D + SIZES.BLOCK_D - 1) // SIZES.BLOCK_D
    TILE: tl.constexpr = SIZES.BLOCK_T > 1
    row = tl.program_id(0) // BLOCKS
    row = (row * SIZES.BLOCK_T + tl.arange(0, SIZES.BLOCK_T))[:, None] if TILE else row
    channel = (tl.program_id(0) % BLOCKS) * SIZES.BLOCK_D + tl.arange(0, SIZES.BLOCK_D)
    channel = channel[None, :] if TILE else channel
    tokens = tokens_of(row, indices, B, P)
    there = channel < D
    current = newest(x, tokens, channel, there)
    total = convolve(current, conv, tokens, channel, there, D, TAPS, SIZES.ACC)
    # before y is stored: then nothing that is kept has to be read twice
    if TAPS > 1:
        keep(current, conv, tokens, channel, there, TAPS)
    total = tl.where(tokens.works, activated(total, SIZES.ACTIVATION), 0.0)
    out = y.at + (tokens.row * y.row + channel * y.channel)
    tl.store(out, total.to(out.dtype.element_ty), mask=there & tokens.exists if TILE else there)


def indices_of(call: Any) -> Indices:
    """The bundle of a step's positions and slots."""
    positions, step = getattr(call, "positions", None), host.known_stride
    slots, others, pad = call.slots, call.dst_slots, call.pad_slot if call.pad_slot >= 0 else None
    return Indices(positions, slots, others, step(positions, 0), step(slots, 0), step(others, 0), pad)


def output(outputs: dict[str, Any], name: str, x: Tensor) -> tensors.State:
    """The bundle of a token's output like x [B,D]: what was given for it, or what is allocated now."""
    given = outputs.get(name)
    if given is None or given.is_contiguous():
        return tensors.State(host.empty(outputs, name, x, *x.shape, dtype=x.dtype), constant(x.shape[1]), constant(1))
    return tensors.State(given, host.row_stride(given, 0), constant(host.channel_stride(given)))


def bundle(call: Call) -> Convolution:
    """What a kernel needs of a call to convolve."""
    bias = None if call.bias is None else call.bias.contiguous()
    return Convolution(call.weight.contiguous(), bias, tensors.rows(call.state))


def launches(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """A program per ``block_b`` batch rows, or one, and block of channels; allocates y."""
    x, weight, state = call.x, call.weight, call.state
    block_b = getattr(config, "block_b", 1)
    code = _activation.CODES[call.activation]
    sizes = ConvSizes(x.shape[1], weight.shape[0], host.wide(x.dtype), 1, block_b, config.block_d, code)
    outputs["state"] = state
    tile = block_b * sizes.BLOCK_D
    args = {
        "x": tensors.state(x),
        "conv": bundle(call),
        "indices": indices_of(call),
        "y": output(outputs, "y", x),
        "B": x.shape[0],
        "P": state.shape[0],
    }
    return [
        Launch(
            kernel=temporal_conv1d_step,
            grid=(triton.cdiv(x.shape[0], block_b) * triton.cdiv(sizes.D, sizes.BLOCK_D),),
            args=args,
            constexprs={"SIZES": sizes},
            num_warps=config.num_warps,
            tile=tile,
            claims=Claims(load_bits=host.load_bits((x, state), tile // (32 * config.num_warps))),
        )
    ]
