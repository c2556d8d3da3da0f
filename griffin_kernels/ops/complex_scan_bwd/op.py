"""complex_scan_bwd: the gradient of complex_scan. The contract.

With m_t = 0 where the state was reset and 1 elsewhere, g_t is the gradient that reaches h_t; conj is the conjugate:

    g_t = dh_t + [t is the last step] dh_last + m_{t+1} conj(a_{t+1}) g_{t+1}
    dx_t = g_t,   da_t = m_t g_t conj(h_{t-1}),   dh0 = m_0 conj(a_0) g_0

These are the gradients of the pairs' reals, which is what PyTorch calls the gradient of a complex tensor. "Last", "t+1"
and "t-1" follow the order in which the forward pass visits time. h is the forward output in the data's dtype.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Inputs, TensorSpec
from griffin_kernels.ops._arguments import Offsets, Resets
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.complex_scan import op as forward
from griffin_kernels.ops.complex_scan_bwd.cost import cost
from griffin_kernels.ops.linear_scan import op as scan
from griffin_kernels.ops.linear_scan import wild
from griffin_kernels.ops.linear_scan_bwd import op as plain


class Call(NamedTuple):
    """The arguments of complex_scan_bwd. dh, dh_last: what reaches h and h_last. h: as the forward gave it."""

    dh: forward.Pairs
    dh_last: forward.PairState
    a: forward.Pairs
    h: forward.Pairs
    h0: forward.PairState = None
    reset: Resets = None
    cu_seqlens: Offsets = None
    reverse: bool = False


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """The equations above, one step at a time from the last to the first."""
    conjugate = functools.partial(forward.product, conjugate=True)

    def outer(g: Tensor, before: Tensor) -> Tensor:
        shape = (-1, *call.a.shape[2:])
        return conjugate(before.reshape(shape), g.reshape(shape))

    dx, da, dh0 = plain.recurrence(forward.flat(call), forward.by_pairs(conjugate), outer)
    return dx.reshape(call.dh.shape), da, None if dh0 is None or call.h0 is None else dh0.reshape(call.h0.shape)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """As for linear_scan_bwd; wild gradients are turned as the states are."""
    inputs = plain.make_inputs(case, device, seed, op=forward.OP)
    if "wild" in case.data:
        draw, angles = Draws(case, device, seed), forward.turns(case)
        _, ends = scan.visits(case, inputs["cu_seqlens"])
        slope, last = wild.gradients(case.torch_dtype, case["B"], case["T"], case["D"], ends)
        inputs["dh"] = draw.data(scan.in_time(case, forward.turned(slope, angles[1:])))
        inputs["dh_last"] = draw.wide(forward.turned(last, angles[ends])) if "h0" in case.data else None
    return inputs


OP = gradient_of(
    forward,
    summary="dx, da, dh0 of complex_scan: a scan in the opposite direction with the conjugate of a",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D 2"),
        "da": TensorSpec("B T D 2"),
        "dh0": TensorSpec("N D 2", "accumulator", optional=True),
    },
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=functools.partial(plain.tolerance, op=forward.OP),
)
