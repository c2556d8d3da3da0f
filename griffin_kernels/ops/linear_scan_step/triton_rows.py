"""One launch in place, a program per batch row and block of channels.

    h = a h + x

Every element of x, a and the state is read once, the state and y are written. Everything is float32, or float64 for
float64 data. Bound by its launch until B D is in the hundreds of thousands, then by memory.
Source: the one-token kernels of flash-linear-attention have the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host, tensors
from griffin_kernels.ops._triton.strides import constant, far
from griffin_kernels.ops.linear_scan_step.op import Call
from griffin_kernels.ops.temporal_conv1d_step import _triton_conv_step as conv_step


@dataclass(frozen=True)
class Config:
    """block_d: channels per program; block_d / (32 num_warps) is a thread's share."""

    block_d: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["B", "P"])
def linear_scan_step(x, a, h, indices, reset, y, B, P, D: tl.constexpr, BLOCK_D: tl.constexpr, LOG: tl.constexpr):
    """x, a, y: [B,D]; h: [P,D]; reset: rows of bytes [B,1] or None. y is 0 in rows that only pad.

    Grid: B * ceil(D / block_d), channels fastest.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tokens = conv_step.tokens_of(tl.program_id(0) // BLOCKS, indices, B, P)
    channel = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    there = channel < D
    goes_on = there & tokens.works
    if reset is not None:
        goes_on = goes_on & (tl.load(reset.at + tokens.row * far(reset.row)) == 0)
    state = h.at + (tokens.slot * h.row + channel * h.channel)
    before = tl.load(state, mask=goes_on, other=0.0)
    gate = tl.load(a.at + (tokens.row * a.row + channel * a.channel), mask=goes_on, other=0.0).to(before.dtype)
    if LOG:
        gate = tl.exp(gate)
    new = gate * before + conv_step.newest(x, tokens, channel, there).to(before.dtype)
    tl.store(h.at + (tokens.target * h.row + channel * h.channel), new, mask=there & tokens.keeps)
    place = y.at + (tokens.row * y.row + channel * y.channel)
    tl.store(place, tl.where(tokens.works, new, 0.0).to(place.dtype.element_ty), mask=there)


def known(tensor: Tensor) -> tensors.State:
    """The bundle of a tensor [B,D] or [P,D] whose row stride is a constant where rows are adjacent."""
    return tensors.State(tensor, host.known_stride(tensor, 0), constant(host.channel_stride(tensor)))


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """A program for every batch row and block of channels; allocates y."""
    x, (batch, width) = call.x, call.x.shape
    outputs["h"] = call.h
    reset = None if call.reset is None else tensors.state(call.reset.view(torch.uint8)[:, None])
    return [
        Launch(
            kernel=linear_scan_step,
            grid=(batch * triton.cdiv(width, config.block_d),),
            args={
                "x": known(x),
                "a": known(call.a),
                "h": known(call.h),
                "indices": conv_step.indices_of(call),
                "reset": reset,
                "y": conv_step.output(outputs, "y", x),
                "B": batch,
                "P": call.h.shape[0],
            },
            constexprs={"D": width, "BLOCK_D": config.block_d, "LOG": call.log_a},
            num_warps=config.num_warps,
            tile=config.block_d,
            claims=Claims(load_bits=host.load_bits((x, call.a, call.h), config.block_d // (32 * config.num_warps), 1)),
        )
    ]


VARIANT = Variant(
    op="linear_scan_step",
    name="triton.rows",
    summary="one launch in place, a program per row and block of channels",
    config=Config,
    axes={"block_d": (64, 128, 256, 512, 1024), "num_warps": (1, 2, 4)},
    reject=lambda case, device, config: host.unfit(case, device, config.block_d, config.num_warps),
    rank=lambda case, device: 30,
    launches=launches,
)
