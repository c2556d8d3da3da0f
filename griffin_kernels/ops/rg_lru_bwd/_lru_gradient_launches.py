"""What the hosts of the Triton variants of rg_lru_bwd share: products before and after, arguments, sums over time.

z [B*T, H, 2, n] holds x W_i and x W_r of a step side by side, in the data's dtype: one batched product gives both, one
takes both gradients back to dx, and one gives both weights' gradients, so that each reads what it shares once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from griffin_kernels.contract import Case
from griffin_kernels.launch import Launch, Step, TorchStep
from griffin_kernels.ops import _products
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import dense_state, rows, state
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru import _lru_launches as forward
from griffin_kernels.ops.rg_lru.op import DECAY, blockwise
from griffin_kernels.ops.rg_lru_bwd._triton_lru_gradient import SUM_D, Ends, GradientSteps, rg_lru_bwd_sums


def sums(call: Any, outputs: dict[str, Any], partial: Tensor) -> Launch:
    """The launch that adds up partial [rows, 3, D] into da_param and the biases' gradients, in a fixed order.

    Where there are no biases, of partial [rows, 1, D] into da_param alone.
    """
    a_param, width = call.a_param, call.a_param.shape[0]

    def like(name: str) -> Tensor | None:
        if (parameter := getattr(call, name, None)) is None:
            return None
        return host.empty(outputs, f"d{name}", parameter, *parameter.shape, dtype=parameter.dtype)

    return Launch(
        kernel=rg_lru_bwd_sums,
        grid=(partial.shape[1] * triton.cdiv(width, SUM_D.value),),
        args={
            "partial": partial,
            "a_param": a_param,
            "da_param": like("a_param"),
            "dinput_gate_bias": like("input_gate_bias"),
            "drecurrence_gate_bias": like("recurrence_gate_bias"),
            "rows": partial.shape[0],
            "c": float(getattr(call, "c", DECAY)),
        },
        constexprs={"D": width, "STRIDE": host.channel_stride(a_param)},
    )


def launches(
    call: Any,
    outputs: dict[str, Any],
    config: Any,
    programs: int,
    scan: Callable[[dict[str, Any]], list[Launch]],
    branch: Tensor | None = None,
    inside: bool = False,
) -> list[Step]:
    """Gate products unless they are ``inside`` the scan, the scan, sums over time, products of gradients.

    scan: launches of a kernel that goes back over time, from its arguments. programs: those over time, for the sums.
    branch [B,T,D], where a recurrent block has one: y times gelu(branch) is then what dy is the gradient of.
    """
    x, h0, positions = call.x, call.h0, call.segment_pos
    (batch, time, width), (left, right) = x.shape, (call.input_gate_weight, call.recurrence_gate_weight)
    blocks, n, _ = left.shape
    both = torch.empty(blocks, n, 2 * n, dtype=left.dtype, device=left.device)
    z = torch.empty(batch * time, blocks, 2, n, dtype=x.dtype, device=x.device)
    partial = torch.empty(programs, 3, width, dtype=torch.float32, device=x.device)
    dx = host.empty(outputs, "dx", x, batch, time, width, dtype=x.dtype)
    dbranch = None if branch is None else host.empty(outputs, "dbranch", x, batch, time, width, dtype=x.dtype)
    if h0 is None:
        outputs["dh0"] = dh0 = None
    else:
        dh0 = host.empty(outputs, "dh0", x, rows_of(batch, call.cu_seqlens), width, dtype=torch.float32)
    dy, y = rows(call.dy, True), rows(call.y, True)
    args = {
        "steps": GradientSteps(
            dy, rows(x, True), y, rows(branch, True), rows(positions, True), dx, dbranch, None, None, z, None
        ),
        "parameters": forward.parameters(call, weights=inside),
        "ends": Ends(state(call.dh_last), state(h0), dense_state(dh0)),
        "partial": partial,
        "T": time,
        "shape": forward.shape_of(call, config)._replace(n=constant(n)),
    }
    steps: list[Step] = [TorchStep("weights side by side", lambda: torch.cat([left, right], dim=2, out=both))]
    if not inside:
        steps.append(TorchStep("gate products", lambda: torch.bmm(blockwise(x, blocks), both, out=pairs(z))))
    steps += [*scan(args), sums(call, outputs, partial)]
    names = ("dinput_gate_weight", "drecurrence_gate_weight")
    dweights = [host.empty(outputs, name, left, *left.shape, dtype=left.dtype) for name in names]

    def through_gates() -> None:  # z holds dz now
        blockwise(dx, blocks).baddbmm_(pairs(z), both.transpose(1, 2))

    def of_weights() -> None:
        found = _products.fastest(blockwise(x, blocks).transpose(1, 2), pairs(z))  # [H, n, 2 n]
        for dweight, gradient in zip(dweights, found.split(n, dim=2), strict=True):
            dweight.copy_(gradient)

    return [*steps, TorchStep("dx through the gates", through_gates), TorchStep("gradients of the weights", of_weights)]


def pairs(z: Tensor) -> Tensor:
    """z [B*T, H, 2, n] as [H, B*T, 2 n], the same memory."""
    return z.flatten(2).transpose(0, 1)


def load_bits(call: Any, config: Any) -> int:
    """Width of a thread's load of its share of neighbouring channels of dy, x, y and z."""
    size, per_thread = call.x.element_size(), config.block_d // (32 * config.num_warps)
    of_z: int = 8 * size * math.gcd(16 // size, per_thread, call.input_gate_bias.shape[1])
    return min(host.load_bits((call.dy, call.x, call.y), per_thread), of_z)


def traffic(case: Case, again: int = 0, rows: int = 0) -> int:
    """Bytes moved: products and scan, ``again`` elements read twice, ``rows`` rows of D float32 of scratch."""
    elements = case["B"] * case["T"] * case["D"]
    # x to z: 3; the scan: 8; dz and dx over itself: 4; x and dz to the weights' gradients: 3
    return (18 * elements + again) * case.bytes_per_element() + 4 * rows * case["D"]
