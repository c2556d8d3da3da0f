"""What the eager variants share: reduce every form of the scan to one plain scan, and the backward to a forward.

A *core* is ``core(x, a) -> h`` for x, a [B, T, D] in the accumulator's dtype, from a zero state, forward in time.
Resets, packed sequences, h0 and direction are folded into x and a before it:

    reset at t:                    a_t := 0
    a sequence starts at t:        x_t := x_t + a_t * h0,  a_t := 0
    reverse:                       flip time
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from griffin_kernels.contract import accumulator

Core = Callable[[Tensor, Tensor], Tensor]


def boundaries(cu_seqlens: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(first [N], last [N], nonempty [N]): where each packed sequence begins and ends in visiting order."""
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    first, last = (ends - 1, starts) if reverse else (starts, ends - 1)
    return first, last, ends > starts


def effective_gate(a: Tensor, reset: Tensor | None, cu_seqlens: Tensor | None, reverse: bool) -> Tensor:
    """a [B,T,D] in the accumulator's dtype, zero where no earlier state enters a step."""
    gate = a.to(accumulator(a.dtype))
    if reset is not None:
        gate = gate.masked_fill(reset[..., None], 0.0)
    if cu_seqlens is not None:
        first, _, nonempty = boundaries(cu_seqlens, reverse)
        gate = gate.index_fill(1, first[nonempty], 0.0)
    return gate


def _initial_gate(a: Tensor, reset: Tensor | None, at: Tensor | int) -> Tensor:
    """What multiplies h0: a at a sequence's first step, zero where that step resets."""
    gate = a[:, at].to(accumulator(a.dtype))  # [B, D] or [1, N, D]
    return gate if reset is None else gate.masked_fill(reset[:, at, None], 0.0)


def forward(
    core: Core,
    x: Tensor,
    a: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """linear_scan through ``core``. Returns h [B,T,D] and h_last [B or N, D]."""
    wide = accumulator(x.dtype)
    gate = effective_gate(a, reset, cu_seqlens, reverse)
    values = x.to(wide)
    if cu_seqlens is None:
        if h0 is not None:
            at = x.shape[1] - 1 if reverse else 0
            values = values.clone()
            values[:, at] += _initial_gate(a, reset, at) * h0.to(wide)
        h = _directed(core, values, gate, reverse)
        h_last = h[:, 0 if reverse else -1].clone()
    else:
        first, last, nonempty = boundaries(cu_seqlens, reverse)
        if h0 is not None:
            values = values.clone()
            values[0, first[nonempty]] += _initial_gate(a, reset, first[nonempty])[0] * h0[nonempty].to(wide)
        h = _directed(core, values, gate, reverse)
        # a sequence without steps ends where it began
        h_last = h.new_zeros(nonempty.shape[0], x.shape[2]) if h0 is None else h0.to(wide, copy=True)
        h_last[nonempty] = h[0, last[nonempty]]
    return h.to(x.dtype).contiguous(), h_last


def _directed(core: Core, x: Tensor, a: Tensor, reverse: bool) -> Tensor:
    return core(x.flip(1), a.flip(1)).flip(1) if reverse else core(x, a)


def previous(h: Tensor, h0: Tensor | None, cu_seqlens: Tensor | None, reverse: bool) -> Tensor:
    """The state before each step [B,T,D] in the accumulator's dtype, resets not counted."""
    wide = accumulator(h.dtype)
    before = torch.zeros(h.shape, dtype=wide, device=h.device)
    if reverse:
        before[:, :-1] = h[:, 1:]
    else:
        before[:, 1:] = h[:, :-1]
    if cu_seqlens is None:
        if h0 is not None:
            before[:, -1 if reverse else 0] = h0.to(wide)
    else:
        first, _, nonempty = boundaries(cu_seqlens, reverse)
        before[0, first[nonempty]] = 0.0 if h0 is None else h0[nonempty].to(wide)
    return before


def backward(
    core: Core,
    dh: Tensor,
    dh_last: Tensor | None,
    a: Tensor,
    h: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """linear_scan_bwd through ``core``: a scan in the other direction whose gate is a, one step later.

    Returns dx, da [B,T,D] and dh0 [B or N, D], or None where there was no h0.
    """
    wide = accumulator(a.dtype)
    gate = effective_gate(a, reset, cu_seqlens, reverse)
    shifted = torch.zeros_like(gate)
    if reverse:
        shifted[:, 1:] = gate[:, :-1]
    else:
        shifted[:, :-1] = gate[:, 1:]
    incoming = dh.to(wide)
    if dh_last is not None:
        incoming = incoming.clone()
        if cu_seqlens is None:
            incoming[:, 0 if reverse else -1] += dh_last.to(wide)
        else:
            _, last, nonempty = boundaries(cu_seqlens, reverse)
            incoming[0, last[nonempty]] += dh_last[nonempty].to(wide)
    g = _directed(core, incoming, shifted, not reverse)  # [B, T, D]
    da = g * previous(h, h0, cu_seqlens, reverse)
    if reset is not None:
        da = da.masked_fill(reset[..., None], 0.0)
    dh0 = None
    if h0 is not None and cu_seqlens is None:
        at = a.shape[1] - 1 if reverse else 0
        dh0 = _initial_gate(a, reset, at) * g[:, at]
    elif h0 is not None and cu_seqlens is not None:
        first, _, nonempty = boundaries(cu_seqlens, reverse)
        dh0 = torch.zeros(h0.shape, dtype=wide, device=a.device) if dh_last is None else dh_last.to(wide, copy=True)
        dh0[nonempty] = _initial_gate(a, reset, first[nonempty])[0] * g[0, first[nonempty]]
    return g.to(a.dtype).contiguous(), da.to(a.dtype), dh0
