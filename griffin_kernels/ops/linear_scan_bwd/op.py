"""linear_scan_bwd: the gradient of linear_scan. The contract.

With m_t = 0 where the state was reset and 1 elsewhere, g_t is the gradient that reaches h_t:

    g_t = dh_t + [t is the last step] dh_last + m_{t+1} a_{t+1} g_{t+1}
    dx_t = g_t,   da_t = m_t g_t h_{t-1},   dh0 = m_0 a_0 g_0

which is a linear scan in the opposite direction with a shifted by one step. "Last", "t+1" and "t-1" follow the order in
which the forward pass visits time. h is the forward output in the data's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import pieces
from griffin_kernels.contract import Case, Cost, Inputs, Op, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops._arguments import Offsets, Resets, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.linear_scan import op as forward
from griffin_kernels.ops.linear_scan import wild


class Call(NamedTuple):
    """The arguments of linear_scan_bwd. dh, dh_last: what reaches h and h_last. h: as linear_scan gave it."""

    dh: Sequence
    dh_last: State
    a: Sequence
    h: Sequence
    h0: State = None
    reset: Resets = None
    cu_seqlens: Offsets = None
    reverse: bool = False


Product = Callable[[Tensor, Tensor], Tensor]


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """The equations above, one step at a time from the last to the first."""
    return recurrence(call, torch.mul, torch.mul)


def recurrence(call: Any, back: Product, outer: Product) -> tuple[Tensor, Tensor, Tensor | None]:
    """``reference`` of a scan whose step hands back ``back(a_t, g_t)``; dA_t is ``outer(g_t, h_{t-1})``."""
    dh, dh_last, a, h, h0, reset, cu_seqlens, reverse = call
    batch, time, width = dh.shape
    dx, da = torch.empty_like(dh), torch.empty_like(a)
    rows = forward.rows_of(batch, cu_seqlens)
    carry = dh.new_zeros(rows, width) if dh_last is None else dh_last.clone()
    order = list(forward.steps(time, cu_seqlens, reverse))
    for index in range(time - 1, -1, -1):
        t, row, first = order[index]
        where = slice(None) if cu_seqlens is None else slice(row, row + 1)
        g = dh[:, t] + carry[where]  # [B, D]
        if first:
            before = torch.zeros_like(g) if h0 is None else h0[where]
        else:
            before = h[:, order[index - 1][0]]
        handed = back(a[:, t], g)
        if reset is not None:
            before, handed = (torch.where(reset[:, t, None], 0.0, value) for value in (before, handed))
        dx[:, t], da[:, t] = g, outer(g, before)
        carry[where] = handed
    return dx, da, None if h0 is None else carry


def make_inputs(case: Case, device: torch.device, seed: int, op: Op = forward.OP) -> Inputs:
    """Inputs of ``op``, its output by the reference in the accumulator's dtype, and random gradients."""
    inputs = op.make_inputs(case, device, seed)
    wide = accumulator(case.torch_dtype)
    h, h_last = pieces.reference(op, inputs, wide)
    assert h is not None and h_last is not None
    draw = Draws(case, device, seed + 1)
    dh = draw.data(draw.normal(*h.shape))
    dh_last = draw.wide(draw.normal(*h_last.shape)) if "h0" in case.data else None
    if "wild" in case.data:
        _, ends = forward.visits(case, inputs["cu_seqlens"])
        slope, last = wild.gradients(case.torch_dtype, case["B"], case["T"], case["D"], ends)
        dh = draw.data(forward.in_time(case, slope))
        dh_last = None if dh_last is None else draw.wide(last)
    del inputs["x"]
    return inputs | {"dh": dh, "dh_last": dh_last, "h": draw.data(h)}


def cost(case: Case) -> Cost:
    """Read dh, a, h; write dx, da: five streams. One multiply-add and one product per element."""
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    return Cost(bytes_read=3 * elements * size, bytes_written=2 * elements * size, vector_flops=3 * elements)


def tolerance(case: Case, op: Op = forward.OP) -> Tolerance:
    """As for the forward scan ``op``; da adds one product and its own rounding."""
    # h arrives already rounded to the data's dtype, for the reference too, so it adds no error of its own.
    one_way = op.tolerance(case)
    return Tolerance(rel_norm=1.5 * one_way.rel_norm, worst=2 * one_way.worst)


OP = gradient_of(
    forward,
    summary="dx, da, dh0 of linear_scan: a scan in the opposite direction",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D"),
        "da": TensorSpec("B T D"),
        "dh0": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
)
