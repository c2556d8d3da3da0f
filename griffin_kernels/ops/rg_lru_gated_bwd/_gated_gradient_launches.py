"""What the hosts of the Triton variants of rg_lru_gated_bwd share: arguments, and the sum over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from griffin_kernels.contract import Case
from griffin_kernels.launch import Launch, Step
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.tensors import dense_state, rows, state
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru import _lru_launches as forward
from griffin_kernels.ops.rg_lru_bwd import _lru_gradient_launches as lru
from griffin_kernels.ops.rg_lru_bwd._triton_lru_gradient import Ends, GradientSteps
from griffin_kernels.ops.rg_lru_gated import _gated_launches as gated
from griffin_kernels.ops.rg_lru_gated_bwd.op import cost


def launches(
    call: Any,
    outputs: dict[str, Any],
    config: Any,
    programs: int,
    scan: Callable[[dict[str, Any]], list[Launch]],
) -> list[Step]:
    """The scan, and the sum over time. scan: as in rg_lru_bwd. programs: those over time."""
    x, h0 = call.x, call.h0
    batch, time, width = x.shape
    names = ("dx", "dinput_gate", "drecurrence_gate")
    dx, dz_i, dz_r = (host.empty(outputs, name, x, batch, time, width, dtype=x.dtype) for name in names)
    if h0 is None:
        outputs["dh0"] = dh0 = None
    else:
        dh0 = host.empty(outputs, "dh0", x, rows_of(batch, call.cu_seqlens), width, dtype=torch.float32)
    dy, own, y, positions, z_i, z_r = (
        rows(value, True) for value in (call.dy, x, call.y, call.segment_pos, *gated.gates(call))
    )
    partial = torch.empty(programs, 1, width, dtype=torch.float32, device=x.device)
    args = {
        "steps": GradientSteps(dy, own, y, None, positions, dx, None, dz_i, dz_r, z_i, z_r),
        "parameters": gated.parameters(call),
        "ends": Ends(state(call.dh_last), state(h0), dense_state(dh0)),
        "partial": partial,
        "T": time,
        "shape": forward.shape_of(call, config),
    }
    return [*scan(args), lru.sums(call, outputs, partial)]


def load_bits(call: Any, config: Any) -> int:
    """Width of a thread's load of its share of neighbouring channels of all inputs."""
    read = (call.dy, call.x, call.y, *gated.gates(call))
    return host.load_bits(read, config.block_d // (32 * config.num_warps))


def traffic(case: Case, again: int = 0, rows: int = 0) -> int:
    """Bytes moved: the ideal, ``again`` elements read twice, ``rows`` rows of D float32 of scratch."""
    total: int = cost(case).bytes_total + again * case.bytes_per_element() + 4 * rows * case["D"]
    return total
