"""geglu: gated_gelu of a gate and a value that lie side by side, as one linear layer makes them. The contract.

out = gelu(x[..., 0, :]) x[..., 1, :]
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import ROWS, Case, Inputs, Op, TensorSpec, dtype_name
from griffin_kernels.ops.gated_gelu import op as apart
from griffin_kernels.ops.gated_gelu.cost import cost, make_case

Pairs = Annotated[Tensor, TensorSpec("B T 2 D")]
"""Gate and value of every step, the gate first."""


class Call(NamedTuple):
    """The arguments of geglu; see ``functional/_feedforward.py``."""

    x: Pairs


def halves(x: Tensor) -> apart.Call:
    """The call of gated_gelu that a tensor [B,T,2,D] is, whose tensors are views."""
    return apart.Call(x[:, :, 0], x[:, :, 1])


def reference(call: Call) -> tuple[Tensor]:
    """gated_gelu's of the halves."""
    return apart.reference(halves(call.x))


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """gated_gelu's inputs side by side; ``strided`` as it has them."""
    parts = apart.make_inputs(case, device, seed)
    packed = torch.stack([parts["gate"], parts["value"]], dim=2)  # [B, T, 2, D]
    if "strided" not in case.data:
        return {"x": packed}
    view = packed.new_full((*packed.shape[:3], 2 * packed.shape[3]), torch.nan)[..., ::2]
    return {"x": view.copy_(packed)}


def case_of(call: Any, op: str = "geglu") -> Case:
    """The case that a real call is, of geglu or of its gradient."""
    batch, time, _, width = call.x.shape
    return make_case(batch, time, width, dtype_name(call.x.dtype), op=op, tag="call")


cases = apart.cases

OP = Op(
    name="geglu",
    summary="gated_gelu of a gate and a value side by side in one tensor, read where they are",
    call=Call,
    outputs={"out": TensorSpec("B T D")},
    reference=reference,
    cases=cases("geglu"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=apart.tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
)
