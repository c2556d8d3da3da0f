"""What the hosts of the Triton convolutions share: pieces of time, arguments of a forward kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Case, Inputs
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host as scan


def pieces_of(x: Tensor, cu_seqlens: Tensor | None, span: int) -> tuple[int, int, int]:
    """(programs along time and batch, pieces in a batch entry, N); see ``_triton_jit.piece``."""
    batch, time, _ = x.shape
    if cu_seqlens is not None:
        sequences = cu_seqlens.shape[0] - 1
        return time // span + sequences, 0, sequences
    pieces = -(-time // span)
    return batch * pieces, pieces, batch


def shared_arguments(inputs: Inputs, span: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(pieces in all, arguments, constexprs) that both directions take."""
    x, weight, state, segment_pos, cu_seqlens = (
        inputs[name] for name in ("x", "weight", "state", "segment_pos", "cu_seqlens")
    )
    count, pieces, sequences = pieces_of(x, cu_seqlens, span)
    args = {
        "x": x,
        "weight": weight,
        "state": state,
        "positions": segment_pos,
        "cu_seqlens": cu_seqlens,
        "T": x.shape[1],
        "pieces": pieces,
        "sequences": sequences,
        "x_batch": scan.row_stride(x, 0),
        "state_batch": scan.row_stride(state, 0),
        "positions_batch": scan.row_stride(segment_pos, 0),
    }
    constexprs = {
        "D": x.shape[2],
        "TAPS": weight.shape[0],
        "X_STEP": scan.known_stride(x, 1),
        "X_CHANNEL": scan.channel_stride(x),
        "STATE_STEP": scan.known_stride(state, 1),
        "STATE_CHANNEL": scan.channel_stride(state),
        "WEIGHT_TAP": scan.row_stride(weight, 0),
        "WEIGHT_CHANNEL": scan.channel_stride(weight),
        "POSITION_STEP": scan.known_stride(segment_pos, 1),
        "ACC": scan.wide(x.dtype),
        "SPAN": span,
    }
    return count, args, constexprs


def arguments(inputs: Inputs, outputs: dict[str, Any], span: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(pieces in all, arguments, constexprs) of a forward kernel; allocates y and the new state."""
    x, bias = inputs["x"], inputs["bias"]
    count, args, constexprs = shared_arguments(inputs, span)
    args |= {
        "bias": bias,
        "y": scan.empty(outputs, "y", x, *x.shape, dtype=x.dtype),
        "new_state": scan.empty(
            outputs, "new_state", x, args["sequences"], constexprs["TAPS"] - 1, x.shape[2], dtype=x.dtype
        ),
    }
    return count, args, constexprs | {"BIAS_CHANNEL": scan.channel_stride(bias)}


MOST_TAPS = 16
"""More would not fit into registers beside the rows loaded ahead, and code grows with their number."""


def unfit(case: Case, device: Device, block_d: int, num_warps: int) -> str | None:
    """Why a kernel cannot run, or would only waste its threads."""
    if case["K"] > MOST_TAPS:
        return f"{case['K']} taps are more than the {MOST_TAPS} that are unrolled"
    return scan.unfit(case, device, block_d, num_warps)


def unfit_tile(case: Case, device: Device, block_t: int, block_d: int, num_warps: int) -> str | None:
    """Why a kernel whose threads share a tile cannot run, or would only waste them."""
    if case["K"] > MOST_TAPS:
        return f"{case['K']} taps are more than the {MOST_TAPS} that are unrolled"
    threads = num_warps * (device.warp_size or 32)
    if block_t * block_d < threads:
        return f"a tile of {block_t} x {block_d} leaves threads without an element: there are {threads}"
    return scan.not_here(device) or scan.idle_channels(case, block_d)
