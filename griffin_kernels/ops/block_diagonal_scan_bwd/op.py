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

from griffin_kernels import pieces
from griffin_kernels.contract import ROWS, Case, Cost, Inputs, Op, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops._arguments import Offsets, Resets, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.block_diagonal_scan import op as forward
from griffin_kernels.ops.linear_scan.op import rows_of, steps


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
    dh, dh_last, a, h, h0, reset, cu_seqlens, reverse = call
    batch, time, width = dh.shape
    blocks, size = a.shape[2:4]
    packed = cu_seqlens is not None
    dx, da = torch.empty_like(dh), torch.empty_like(a)
    rows = rows_of(batch, cu_seqlens)
    carry = dh.new_zeros(rows, width) if dh_last is None else dh_last.clone()
    order = list(steps(time, cu_seqlens, reverse))
    for index in range(time - 1, -1, -1):
        t, row, first = order[index]
        where = slice(row, row + 1) if packed else slice(None)
        g = dh[:, t] + carry[where]  # [B, D]
        if first:
            before = torch.zeros_like(g) if h0 is None else h0[where]
        else:
            before = h[:, order[index - 1][0]]
        if reset is not None:
            before = torch.where(reset[:, t, None], 0.0, before)
        vectors = g.reshape(batch, blocks, size)
        dx[:, t] = g
        da[:, t] = torch.einsum("bhj,bhk->bhjk", vectors, before.reshape(batch, blocks, size))
        back = torch.einsum("bhjk,bhj->bhk", a[:, t], vectors).reshape(batch, width)
        carry[where] = back if reset is None else torch.where(reset[:, t, None], 0.0, back)
    return dx, da, None if h0 is None else carry


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs, the forward output by the reference in the accumulator's dtype, and random gradients."""
    inputs = forward.make_inputs(case, device, seed)
    wide = accumulator(case.torch_dtype)
    h, h_last = pieces.reference(forward.OP, inputs, wide)
    assert h is not None and h_last is not None
    draw = Draws(case, device, seed + 1)
    dh = draw.data(draw.normal(*h.shape))
    dh_last = draw.wide(draw.normal(*h_last.shape)) if "h0" in case.data else None
    del inputs["x"]
    return inputs | {"dh": dh, "dh_last": dh_last, "h": draw.data(h)}


def cost(case: Case) -> Cost:
    """Read dh, h and a, write dx and da. n multiply-adds per element, and n products for da."""
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    return Cost(
        bytes_read=(case["n"] + 2) * elements * size,
        bytes_written=(case["n"] + 1) * elements * size,
        vector_flops=3 * case["n"] * elements,
    )


def tolerance(case: Case) -> Tolerance:
    """As for the forward scan; da adds one product and its own rounding."""
    # h arrives already rounded to the data's dtype, for the reference too, so it adds no error of its own.
    one_way = forward.tolerance(case)
    return Tolerance(rel_norm=1.5 * one_way.rel_norm, worst=2 * one_way.worst)


OP = Op(
    name="block_diagonal_scan_bwd",
    summary="dx, dA, dh0 of block_diagonal_scan: a scan in the opposite direction with A transposed",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D"),
        "da": TensorSpec("B T H n n"),
        "dh0": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    cases=forward.cases("block_diagonal_scan_bwd"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=functools.partial(forward.case_of, op="block_diagonal_scan_bwd"),
    splits=(ROWS, ("H", "D")),
    exact_dims=("n",),
    free_dims=("N", "H"),
    check=forward.check,
    forward="block_diagonal_scan",
)
