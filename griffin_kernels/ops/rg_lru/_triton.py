"""What the hosts of rg_lru's Triton kernels share: arguments, the gate products in front, reasons to refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.contract import Case, Inputs
from griffin_kernels.device import Device
from griffin_kernels.launch import Call
from griffin_kernels.ops.linear_scan import _triton as scan
from griffin_kernels.ops.rg_lru.cost import cost

NAMES = (
    "x",
    "a_param",
    "input_gate_weight",
    "input_gate_bias",
    "recurrence_gate_weight",
    "recurrence_gate_bias",
    "h0",
    "segment_pos",
    "cu_seqlens",
)
"""The op's arguments, in order."""


def arguments(inputs: Inputs, outputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments, constexprs) of every kernel here, but for weights and products; allocates y and h_last."""
    x, h0, positions, cu_seqlens = (inputs[name] for name in ("x", "h0", "segment_pos", "cu_seqlens"))
    batch, time, width = x.shape
    rows = scan.rows_of(inputs, batch)
    args = {
        "x": x,
        "a_param": inputs["a_param"].contiguous(),
        "bias_i": inputs["input_gate_bias"].contiguous(),
        "bias_r": inputs["recurrence_gate_bias"].contiguous(),
        "h0": h0,
        "positions": positions,
        "y": scan.empty(outputs, "y", x, batch, time, width, dtype=x.dtype),
        "h_last": scan.empty(outputs, "h_last", x, rows, width, dtype=torch.float32),
        "T": time,
        "x_batch": scan.row_stride(x, 0),
        "position_batch": scan.row_stride(positions, 0),
        "h0_row": scan.row_stride(h0, 0),
    }
    constexprs = {
        "D": width,
        "X_STEP": scan.row_stride(x, 1),
        "X_CHANNEL": scan.channel_stride(x),
        "POSITION_STEP": scan.row_stride(positions, 1),
        "H0_CHANNEL": scan.channel_stride(h0),
        "BEGINS": cu_seqlens is not None and h0 is None,
    }
    return args, constexprs


def products(inputs: Inputs) -> tuple[dict[str, Tensor], list[Call]]:
    """(x W_i and x W_r as [B,T,D] in the data's dtype, the steps that compute them)."""
    x = inputs["x"]
    steps, found = [], {}
    for name, weight in (("z_i", inputs["input_gate_weight"]), ("z_r", inputs["recurrence_gate_weight"])):
        found[name] = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        steps.append(Call(f"block-diagonal product {name}", product(x, weight, found[name])))
    return found, steps


def product(x: Tensor, weight: Tensor, out: Tensor) -> Callable[[], Tensor]:
    """Writes x [B,T,D] times the blocks of weight [H,n,n] into out, contiguous [B,T,D]."""
    blocks, n = weight.shape[:2]

    def run() -> Tensor:
        # [H, B*T, n] both; a matrix product can write rows that lie D apart, so nothing is transposed in memory
        left = x.reshape(-1, blocks, n).transpose(0, 1)
        return torch.bmm(left, weight, out=out.view(-1, blocks, n).transpose(0, 1))

    return run


def run(make: Callable[..., list[launch.Step]], config: Any, *values: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the steps of a variant on the op's arguments, in order."""
    outputs: dict[str, Any] = {}
    launch.run_all(make(dict(zip(NAMES, values, strict=True)), outputs, config))
    return outputs["y"], outputs["h_last"]


def unfit(case: Case, device: Device, fast: bool) -> str | None:
    """Why no kernel of this op runs, or not this fast, if so."""
    if reason := scan.not_here(device):
        return reason
    if case.dtype == "float64":
        return "gates and state are float32 here, float64 data wants more (eager.unfused takes it)"
    if fast and case.dtype != "bfloat16":
        return f"fast gates are off by up to 2^-11, which only bfloat16's rounding hides, not {case.dtype}'s"
    return None


def traffic(case: Case, streams: int, scratch: int = 0) -> int:
    """Bytes moved: ``streams`` data elements per element, the weights and indices once, ``scratch`` bytes besides."""
    ideal = cost(case)
    size = case.bytes_per_element()
    elements: int = case["B"] * case["T"] * case["D"]
    return ideal.bytes_total + (streams - 2) * elements * size + scratch
