"""What the hosts of the one-token convolution's Triton kernels share."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host, tensors
from griffin_kernels.ops.temporal_conv1d_step._triton_jit import Convolution, Indices
from griffin_kernels.ops.temporal_conv1d_step.op import Call


def indices_of(positions: Tensor | None, slots: Tensor | None) -> Indices:
    """The bundle of positions and slots."""
    return Indices(positions, slots, host.known_stride(positions, 0), host.known_stride(slots, 0))


def bundle(call: Call) -> Convolution:
    """What a kernel needs of a call to convolve."""
    return Convolution(call.weight.contiguous(), call.bias.contiguous(), tensors.rows(call.state))


def launch(kernel: Any, call: Call, outputs: dict[str, Any], config: Any, block_b: int, **blocks: int) -> Launch:
    """A program per ``block_b`` batch rows and block of channels; allocates y."""
    x, weight, _, state, positions, slots = call
    batch, width = x.shape
    outputs["state"] = state
    tile = block_b * config.block_d
    return Launch(
        kernel=kernel,
        grid=(triton.cdiv(batch, block_b) * triton.cdiv(width, config.block_d),),
        args={
            "x": tensors.state(x),
            "conv": bundle(call),
            "indices": indices_of(positions, slots),
            "y": host.empty(outputs, "y", x, batch, width, dtype=x.dtype),
            "B": batch,
            "P": state.shape[0],
        },
        constexprs={
            "D": width,
            "TAPS": weight.shape[0],
            "ACC": host.wide(x.dtype),
            "BLOCK_D": config.block_d,
            **blocks,
        },
        num_warps=config.num_warps,
        tile=tile,
        claims=Claims(load_bits=host.load_bits((x, state), tile // (32 * config.num_warps))),
    )
