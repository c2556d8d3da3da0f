"""What the hosts of the one-token convolution's Triton kernels share."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import Inputs
from griffin_kernels.ops._triton import host as scan


def index_constexprs(inputs: Inputs) -> dict[str, Any]:
    """Strides of positions and slots; 0 where they are absent."""
    positions, slots = inputs["positions"], inputs["slots"]
    return {"POSITION_STEP": scan.known_stride(positions, 0), "SLOT_STEP": scan.known_stride(slots, 0)}


def arguments(inputs: Inputs, outputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments, constexprs) of every kernel of the op; allocates y."""
    x, weight, state = inputs["x"], inputs["weight"], inputs["state"]
    batch, width = x.shape
    outputs["state"] = state
    args = {
        "x": x,
        "weight": weight.contiguous(),
        "bias": inputs["bias"].contiguous(),
        "state": state,
        "positions": inputs["positions"],
        "slots": inputs["slots"],
        "y": scan.empty(outputs, "y", x, batch, width, dtype=x.dtype),
        "B": batch,
        "P": state.shape[0],
        "x_row": scan.row_stride(x, 0),
        "state_slot": scan.row_stride(state, 0),
    }
    constexprs = {
        "D": width,
        "X_CHANNEL": scan.channel_stride(x),
        "STATE_ROW": scan.known_stride(state, 1),
        "STATE_CHANNEL": scan.channel_stride(state),
        **index_constexprs(inputs),
        "TAPS": weight.shape[0],
        "ACC": scan.wide(x.dtype),
    }
    return args, constexprs
