"""Gates that are not simply what a holds: logarithms, one step for all, inputs that count 1 - gate times.

A kernel's argument ``gating`` is None for a plain scan, and then nothing of this is in its code. exp and 1 - gate take
float32, or float64 for such data. 1 - exp(log a) is -expm1(log a): a series where the difference would cancel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops._triton.tensors import Rows, load_rows, rows


class Gating(NamedTuple):
    """Constants, all of them bool. log: a holds logarithms. convex: inputs count 1 - gate times. steady: a of one step
    is that of every step."""

    log: Any
    convex: Any
    steady: Any


def gating_of(call: Any) -> Gating | None:
    """What a call of linear_scan or of its gradient asks for; None where its gates are what a holds."""
    if call.a.ndim > 3:
        return None
    asked = call.log_a, call.convex, is_steady(call.a, call[0])
    return Gating(*map(constant, asked)) if any(asked) else None


def is_steady(a: Tensor, x: Tensor) -> bool:
    """Whether gates a [Ba,Ta,D] of x [B,T,D] are the same in all steps, or in all rows too."""
    return a.ndim == 3 and a.shape[:2] != x.shape[:2]


def gate_rows(a: Tensor | None, x: Tensor | None, reverse: bool) -> Rows | None:
    """The bundle of gates a [Ba,Ta,D] of x [B,T,D]; steps of steady ones lie 0 apart."""
    if a is None or x is None or not is_steady(a, x):
        return rows(a, reverse)
    return Rows(a, host.row_stride(a, 0), constant(0), constant(host.channel_stride(a)))


@triton.jit
def gate_of(a, gating, ACC: tl.constexpr):
    """The gates that a is, in ACC unless they are a itself."""
    gate = a
    if gating is not None:
        gate = a.to(ACC)
        if gating.log:
            gate = tl.exp(gate)
    return gate


@triton.jit
def share_of(a, gate, gating):
    """1 - gate, in the gate's dtype; of logarithms near 0 too without cancellation."""
    share = 1.0 - gate
    if gating.log:
        log = a.to(gate.dtype)
        # (exp(y) - 1) / y = 1 + y/2 (1 + y/3 (1 + ...)): what is left out is below half a unit up to |y| = 1/2
        TERMS: tl.constexpr = 14 if gate.dtype == tl.float64 else 8
        series = 1.0
        for n in tl.static_range(TERMS, 1, -1):
            series = series * (log * (1.0 / n)) + 1.0
        share = tl.where(tl.abs(log) < 0.5, -log * series, share)
    return share


@triton.jit
def input_of(x, a, gate, gating):
    """What a step adds to the state, from x in the gate's dtype."""
    if gating is not None:
        if gating.convex:
            x = x * share_of(a, gate, gating)
    return x


@bundling
def held_gates(a, channels, gating, ACC: tl.constexpr):
    """What steady gates hold, [block_d] in ACC, read once; None where every step has its own."""
    return load_rows(a, channels, 1, 0.0, 1, True)[0].to(ACC) if gating is not None and gating.steady else None


@triton.jit
def load_steps(a, held, channels, left, OTHER: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr):
    """As ``load_rows`` of a, unless ``held`` is what all its steps are."""
    if held is None:
        loaded = load_rows(a, channels, left, OTHER, ROWS, TAIL)
    else:
        loaded = ()
        for u in tl.static_range(ROWS):
            if TAIL:
                loaded += (tl.where(u < left, held, OTHER),)
            else:
                loaded += (held,)
    return loaded
