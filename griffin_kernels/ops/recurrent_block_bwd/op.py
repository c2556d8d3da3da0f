"""recurrent_block_bwd: the gradient of recurrent_block. The contract.

h is rg_lru's output in the data's dtype; the convolution and the gates are recomputed. With G = gelu in its tanh form,

    dh = dout G(y),   dy = dout h G'(y)
    du, d gates, dh0 = rg_lru_bwd(dh, dh_last, u, h),   dx, dconv_weight, dconv_bias, dconv_state = conv_bwd(du)
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels import pieces
from griffin_kernels.contract import ROWS, Case, Cost, Inputs, Op, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops.recurrent_block import op as forward
from griffin_kernels.ops.recurrent_block.cost import weight_elements
from griffin_kernels.ops.recurrent_block_step.cost import GELU_FLOPS, GELU_SPECIALS
from griffin_kernels.ops.rg_lru import cost as lru_cost
from griffin_kernels.ops.rg_lru_bwd import op as lru_bwd
from griffin_kernels.ops.temporal_conv1d import cost as conv_cost
from griffin_kernels.ops.temporal_conv1d import op as conv
from griffin_kernels.ops.temporal_conv1d_bwd import op as conv_bwd


def reference(
    dout: Tensor,
    dnew_conv_state: Tensor | None,
    dh_last: Tensor | None,
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h: Tensor,
    conv_state: Tensor | None,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The pieces' own gradients, in the order of the chain rule."""
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    u, _ = conv.reference(conv.Call(x, conv_weight, conv_bias, conv_state, segment_pos, cu_seqlens))
    gelu, slope = gelu_and_slope(y)
    du, *dgates, dh0 = lru_bwd.reference(dout * gelu, dh_last, u, *gates, h, h0, segment_pos, cu_seqlens)
    assert du is not None
    dx, dconv_weight, dconv_bias, dconv_state = conv_bwd.reference(
        conv_bwd.Call(du, dnew_conv_state, x, conv_weight, conv_state, segment_pos, cu_seqlens)
    )
    return dx, dout * h * slope, dconv_weight, dconv_bias, *dgates, dconv_state, dh0


def gelu_and_slope(y: Tensor) -> tuple[Tensor, Tensor]:
    """gelu's tanh form y (1 + t) / 2, t = tanh(sqrt(2 / pi) (y + 0.044715 y^3)), and its derivative."""
    scale = (2 / torch.pi) ** 0.5
    t = torch.tanh(scale * (y + 0.044715 * y**3))
    inner = scale * (1 + 3 * 0.044715 * y**2)
    return 0.5 * y * (1 + t), 0.5 * (1 + t) + 0.5 * y * (1 - t**2) * inner


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs, h by the reference in the accumulator's dtype, and random gradients."""
    inputs = forward.make_inputs(case, device, seed)
    wide = accumulator(case.torch_dtype)
    _, kept, h_last, h = pieces.reference(forward.OP, inputs | {"with_h": True}, wide)
    del inputs["with_h"]
    assert kept is not None and h_last is not None and h is not None
    generator = torch.Generator("cpu").manual_seed(seed + 1)

    def gradient(like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)

    dout = gradient(h, case.torch_dtype)
    dkept = gradient(kept, case.torch_dtype) if "state" in case.data else None
    dh_last = gradient(h_last, wide) if "h0" in case.data else None
    optional = {name: inputs.pop(name) for name in OPTIONAL}
    return {
        "dout": dout,
        "dnew_conv_state": dkept,
        "dh_last": dh_last,
        **inputs,
        "h": h.to(device, case.torch_dtype),
        **optional,
    }


def cost(case: Case) -> Cost:
    """Read dout, x, y, h and the weights, write dx, dy and the weights' gradients."""
    elements = case["B"] * case["T"] * case["D"]
    weights = weight_elements(case)
    size = case.bytes_per_element()
    # rg_lru_bwd's 31; the convolution again, its dx and dweight: 6 K; gelu, its slope 8, two products and dout G 4
    return Cost(
        bytes_read=(4 * elements + weights) * size + lru_cost.index_bytes(case),
        bytes_written=(2 * elements + weights) * size,
        tensor_flops=6 * 2 * elements * case["n"],
        vector_flops=(31 + 6 * case["K"] + GELU_FLOPS + 12) * elements,
        special_ops=(6 + GELU_SPECIALS) * elements,
    )


def tolerance(case: Case) -> Tolerance:
    """rg_lru_bwd's bounds, with the convolution's rounding on the way in and out."""
    # u enters with the convolution's error as in the forward (3 e_u); dh is rounded once where it goes through memory,
    # and the convolution's gradient sums K of du with its own rounding. dy has gelu's slope, at most 1.13, and h's
    # rounding. A worst element may meet gelu(y) = 4, as in the forward, where dout G has an rms of 0.65.
    sizes = (case["B"], case["T"], case["D"])
    convolved = conv.tolerance(conv_cost.make_case(*sizes, case["K"], case.dtype))
    recurrent = lru_bwd.tolerance(lru_cost.make_case(*sizes, case["H"], case.dtype, case.flags, rows=case["N"]))
    rounding = torch.finfo(case.torch_dtype).eps / 2
    return Tolerance(
        rel_norm=recurrent.rel_norm + 4 * convolved.rel_norm + 2 * rounding,
        worst=6 * (recurrent.worst + 4 * convolved.worst + 2 * rounding),
    )


def case_of(
    dout: Tensor,
    dnew_conv_state: Tensor | None,
    dh_last: Tensor | None,
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h: Tensor,
    conv_state: Tensor | None,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Case:
    """The case that a real call is."""
    return forward.call_case("recurrent_block_bwd", x, conv_weight, input_gate_bias, segment_pos, cu_seqlens)


OPTIONAL = ("conv_state", "h0", "segment_pos", "cu_seqlens")

OP = Op(
    name="recurrent_block_bwd",
    summary="the gradients of recurrent_block, convolution and gates recomputed",
    inputs={
        "dout": TensorSpec("B T D"),
        "dnew_conv_state": TensorSpec("N K-1 D", optional=True),
        "dh_last": TensorSpec("N D", "state", optional=True),
        **{name: forward.INPUTS[name] for name in ("x", "y", *forward.WEIGHTS)},
        "h": TensorSpec("B T D"),
        **{name: forward.INPUTS[name] for name in OPTIONAL},
    },
    outputs={
        "dx": TensorSpec("B T D"),
        "dy": TensorSpec("B T D"),
        **{f"d{name}": forward.INPUTS[name] for name in forward.WEIGHTS},
        "dconv_state": TensorSpec("N K-1 D", optional=True),
        "dh0": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    cases=forward.cases("recurrent_block_bwd"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    exact_dims=("K",),
    free_dims=("n", "N"),
    forward="recurrent_block",
)
