"""What the hosts of the Triton convolutions share: pieces of time, arguments of a forward kernel."""

from __future__ import annotations

from typing import Any

import triton

from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import State, rows
from griffin_kernels.ops.temporal_conv1d.op import Call


def shared_arguments(call: Any, span: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(pieces of time in all, arguments, constexprs) that both directions take; see ``_triton_jit.piece_of``."""
    x, weight, cu_seqlens = call.x, call.weight, call.cu_seqlens
    batch, time, width = x.shape
    parts = -(-time // span) if cu_seqlens is None else cu_seqlens.shape[0] - 1
    count = batch * parts if cu_seqlens is None else time // span + parts
    args = {
        "x": rows(x),
        "weight": State(weight, constant(host.row_stride(weight, 0)), constant(host.channel_stride(weight))),
        "state": rows(call.state),
        "positions": rows(call.segment_pos),
        "cu_seqlens": cu_seqlens,
        "T": time,
        "parts": parts,
    }
    return count, args, {"D": width, "TAPS": weight.shape[0], "ACC": host.wide(x.dtype)}


def launch(kernel: Any, call: Call, outputs: dict[str, Any], config: Any, blocks: dict[str, int], share: int) -> Launch:
    """A forward kernel, a program per piece of SPAN steps and block of channels; allocates y and the new state.

    blocks: SPAN and BLOCK_D, and what else the kernel takes. share: elements of a load by a program of one warp.
    """
    x, bias = call.x, call.bias
    count, args, constexprs = shared_arguments(call, blocks["SPAN"])
    kept = (x.shape[0] if call.cu_seqlens is None else args["parts"], constexprs["TAPS"] - 1, x.shape[2])
    args |= {
        "bias": State(bias, constant(0), constant(host.channel_stride(bias))),
        "y": host.empty(outputs, "y", x, *x.shape, dtype=x.dtype),
        "new_state": host.empty(outputs, "new_state", x, *kept, dtype=x.dtype),
    }
    return Launch(
        kernel=kernel,
        grid=(count * triton.cdiv(x.shape[2], config.block_d),),
        args=args,
        constexprs=constexprs | blocks,
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=host.load_bits((x,), share // (32 * config.num_warps))),
    )


MOST_TAPS = 16
"""More would not fit into registers beside the rows loaded ahead, and code grows with their number."""


def too_many_taps(case: Case) -> str | None:
    """Why taps cannot be unrolled, if so."""
    if case["K"] > MOST_TAPS:
        return f"{case['K']} taps are more than the {MOST_TAPS} that are unrolled"
    return None


def uneven(config: Any) -> str | None:
    """Why a span is no whole number of tiles, if so."""
    if config.span % config.block_t:
        return f"span={config.span} is not a multiple of block_t={config.block_t}"
    return None


def unfit_rows(case: Case, device: Device, config: Any) -> str | None:
    """Why a kernel whose threads own channels cannot run, or would only waste them."""
    return uneven(config) or too_many_taps(case) or host.unfit(case, device, config.block_d, config.num_warps)


def unfit_tile(case: Case, device: Device, config: Any) -> str | None:
    """Why a kernel whose threads share a tile cannot run, or would only waste them."""
    return (
        too_many_taps(case)
        or host.idle_tile(config.block_t, config.block_d, config.num_warps, device)
        or host.not_here(device)
        or host.idle_channels(case, config.block_d)
    )
