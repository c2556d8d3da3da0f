"""linear_scan_bwd: the gradient of linear_scan. The contract.

With m_t = 0 where the state was reset and 1 elsewhere, g_t is the gradient that reaches h_t:

    g_t = dh_t + [t is the last step] dh_last + m_{t+1} a_{t+1} g_{t+1}
    dx_t = g_t,   da_t = m_t g_t h_{t-1},   dh0 = m_0 a_0 g_0

which is a linear scan in the opposite direction with a shifted by one step. "Last", "t+1" and "t-1" follow the order in
which the forward pass visits time. h is the forward output in the data's dtype. Of the options:

    convex:    dx_t := (1 - a_t) g_t,   da_t := da_t - g_t x_t       x is read only here
    log_a:     da_t := a_t da_t, the gradient of log a
    a of one step, or of one row too: da is the sum over them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors, pieces
from griffin_kernels.contract import Case, Inputs, Op, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops._arguments import Gates, Offsets, Resets, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.linear_scan import op as forward
from griffin_kernels.ops.linear_scan import wild
from griffin_kernels.ops.linear_scan_bwd.cost import cost


class Call(NamedTuple):
    """The arguments of linear_scan_bwd. dh, dh_last: what reaches h and h_last. h: as linear_scan gave it.

    x: read where the scan is convex.
    """

    dh: Sequence
    dh_last: State
    a: Gates
    h: Sequence
    h0: State = None
    reset: Resets = None
    cu_seqlens: Offsets = None
    x: Annotated[Tensor | None, TensorSpec("B T D", when="convex")] = None
    reverse: bool = False
    log_a: bool = False
    convex: bool = False


Product = Callable[[Tensor, Tensor], Tensor]


def check(call: Any) -> None:
    """What the tensor specs cannot express: as of the scan, and that the convex form has x."""
    if call.convex and call.x is None:
        raise errors.ArgumentError("linear_scan_bwd: x is None, and the gradient of a convex scan needs it")
    forward.check_scan(call)


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """The equations above, one step at a time from the last to the first."""
    a, share = forward.gates_and_shares(call)
    g, da, dh0 = recurrence(call._replace(a=a.expand(call.dh.shape)), torch.mul, torch.mul)
    return *forward.through_options(call, a, share, g, da), dh0


def recurrence(call: Any, back: Product, outer: Product) -> tuple[Tensor, Tensor, Tensor | None]:
    """``reference`` of a scan whose step hands back ``back(a_t, g_t)``; dA_t is ``outer(g_t, h_{t-1})``."""
    dh, dh_last, a, h, h0, reset, cu_seqlens = call[:7]
    batch, time, width = dh.shape
    dx, da = torch.empty_like(dh), torch.empty_like(a)
    rows = forward.rows_of(batch, cu_seqlens)
    carry = dh.new_zeros(rows, width) if dh_last is None else dh_last.clone()
    order = list(forward.steps(time, cu_seqlens, call.reverse))
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
    h, h_last = pieces.reference(op, inputs, wide)[:2]
    assert h is not None and h_last is not None
    draw = Draws(case, device, seed + 1)
    dh = draw.data(draw.normal(*h.shape))
    dh_last = draw.wide(draw.normal(*h_last.shape)) if "h0" in case.data else None
    if "wild" in case.data:
        _, ends = forward.visits(case, inputs["cu_seqlens"])
        slope, last = wild.gradients(case.torch_dtype, case["B"], case["T"], case["D"], ends)
        dh = draw.data(forward.in_time(case, slope))
        dh_last = None if dh_last is None else draw.wide(last)
    x = inputs.pop("x")
    if op is forward.OP:
        del inputs["with_a_prod"]
        inputs["x"] = x if inputs["convex"] else None
    return inputs | {"dh": dh, "dh_last": dh_last, "h": draw.data(h)}


def tolerance(case: Case, op: Op = forward.OP) -> Tolerance:
    """As for the forward scan ``op``; da adds one product and its own rounding."""
    # h arrives already rounded to the data's dtype, for the reference too, so it adds no error of its own.
    # The sum over a constant gate's steps adds up as many roundings.
    one_way = op.tolerance(case)
    if "constant" in case.flags:
        one_way = one_way.times(2.0)
    return Tolerance(rel_norm=1.5 * one_way.rel_norm, worst=2 * one_way.worst)


OP = gradient_of(
    forward,
    summary="dx, da, dh0 of linear_scan: a scan in the opposite direction",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D"),
        "da": TensorSpec("Ba Ta D", "parameter"),
        "dh0": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    check=check,
)
