"""block_diagonal_scan_bwd: the gradient of block_diagonal_scan. The contract.

With m_t = 0 where the state was reset and 1 elsewhere, g_t is the gradient that reaches h_t. In every block:

    g_t = dh_t + [t is the last step] dh_last + m_{t+1} A_{t+1}^T g_{t+1}
    dx_t = g_t,   dA_t = m_t g_t h_{t-1}^T,   dh0 = m_0 A_0^T g_0

which is a block-diagonal scan in the opposite direction with A transposed and shifted by one step. "Last", "t+1" and
"t-1" follow the order in which the forward pass visits time. h is the forward output in the data's dtype.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import TensorSpec
from griffin_kernels.ops._arguments import Offsets, Resets, Sequence, State
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.block_diagonal_scan import op as forward
from griffin_kernels.ops.block_diagonal_scan_bwd.cost import cost
from griffin_kernels.ops.linear_scan_bwd import op as plain


class Call(NamedTuple):
    """The arguments of block_diagonal_scan_bwd. dh, dh_last: what reaches h and h_last. h: as the forward gave it."""

    dh: Sequence
    dh_last: State
    a: forward.Matrices
    h: Sequence
    h0: State = None
    reset: Resets = None
    cu_seqlens: Offsets = None
    reverse: bool = False


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """The equations above, one step at a time from the last to the first."""
    vectors = call.a.shape[0], *call.a.shape[2:4]

    def outer(g: Tensor, before: Tensor) -> Tensor:
        return torch.einsum("bhj,bhk->bhjk", g.reshape(vectors), before.reshape(vectors))

    return plain.recurrence(call, lambda a, g: forward.blockwise("bhjk,bhj->bhk", a, g), outer)


OP = gradient_of(
    forward,
    summary="dx, dA, dh0 of block_diagonal_scan: a scan in the opposite direction with A transposed",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D"),
        "da": TensorSpec("B T H n n"),
        "dh0": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    make_inputs=functools.partial(plain.make_inputs, op=forward.OP),
    cost=cost,
    tolerance=functools.partial(plain.tolerance, op=forward.OP),
    check=forward.check,
)
