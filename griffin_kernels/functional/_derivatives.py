"""Derivatives made of the scans themselves: tangents, and a gradient that has gradients. Those of rms_norm and
of the gated MLP are made of PyTorch's operations.

    h_t = m_t A_t h_{t-1} + x_t                            A_t: gates, the matrices of blocks, or complex gates
    tangent:   h'_t = m_t A_t h'_{t-1} + (x'_t + m_t A'_t h_{t-1})    the same scan of other inputs
    gradient:  g_t = dh_t + m_{t+1} A_{t+1}^T g_{t+1}                 the scan in the opposite direction
               dx_t = g_t,  dA_t = m_t g_t h_{t-1}^T,  dh0 = m_0 A_0^T g_0

m_t is 0 where the state was reset; the transpose of a complex gate is its conjugate. Complex numbers are two channels
each here, but for a [B,T,D,2]. 16-bit data is widened to float32 here. Slower than the kernels of the gradient,
which these replace only where a derivative of the gradient is asked for. The eager variants have the same equations
with writes into parts of tensors, which vmap refuses where the parts are mapped and the tensor is not; these have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import accumulator
from griffin_kernels.ops._activation import gelu_and_slope
from griffin_kernels.ops.complex_scan.op import flat, paired, product
from griffin_kernels.ops.linear_scan.op import gates_and_shares, through_options
from griffin_kernels.ops.rms_norm_bwd import eager_composed

Scan = Callable[..., tuple[Tensor, Tensor]]
"""(x, a, h0, reset, cu_seqlens, reverse) -> (h, h_last), differentiable."""


def _gates(call: Any, wide: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Gates or matrices of every step, and what a convex scan multiplies x by, in the accumulator's dtype."""
    if call.a.dim() > call[0].dim():
        return call.a.to(wide), None
    a, share = gates_and_shares(call._replace(a=call.a.to(wide)))
    return a.expand(call[0].shape), share


def _times(a: Tensor, h: Tensor, transposed: bool = False) -> Tensor:
    """A h of each step, or A^T h: a [..., D], [..., H, n, n] or [..., D/2, 2], h [..., D]."""
    if a.dim() == h.dim():
        return a * h
    if a.dim() == h.dim() + 1:
        return product(a, paired(h), conjugate=transposed).flatten(-2)
    blocks = h.reshape(a.shape[:-1])
    found: Tensor = torch.einsum("...kj,...k->...j" if transposed else "...jk,...k->...j", a, blocks)
    return found.flatten(-2)


def _outer(g: Tensor, h: Tensor, a: Tensor) -> Tensor:
    """dA of each step: g h, the matrices g h^T of a's blocks, or g conj(h)."""
    if a.dim() == h.dim():
        return g * h
    if a.dim() == h.dim() + 1:
        return product(paired(h), paired(g), conjugate=True)
    shape = a.shape[:-1]
    return g.reshape(shape)[..., :, None] * h.reshape(shape)[..., None, :]


def _one(a: Tensor) -> Tensor:
    """What changes nothing in place of a step of a [B,T,...]."""
    if a.dim() == 3:
        return a.new_ones(())
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return one[0] if a.dim() == 4 else one


def _transposed(a: Tensor) -> Tensor:
    """a [B,T,...] as its gradient goes through it."""
    if a.dim() == 4:
        real, imaginary = a.unbind(-1)
        return torch.stack((real, -imaginary), dim=-1)
    return a.transpose(-1, -2) if a.dim() == 5 else a


def _ends(cu_seqlens: Tensor, time: int, first: bool) -> tuple[Tensor, Tensor]:
    """(step of each packed sequence where it begins or ends, whether it has steps); for none, a step that exists."""
    starts, stops = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    steps = starts if first else stops - 1
    return steps.clamp(0, max(time - 1, 0)), stops > starts


def _is_end(call: Any, time: int, first: bool) -> Tensor:
    """bool [T]: steps that are the first in time of a sequence, or the last."""
    device = call.a.device
    if call.cu_seqlens is None or not time:
        return torch.arange(time, dtype=torch.int64, device=device) == (0 if first else time - 1)
    steps, present = _ends(call.cu_seqlens, time, first)
    return torch.zeros(time, dtype=torch.int64, device=device).index_add(0, steps, present.long()) > 0


def _unless_reset(value: Tensor, reset: Tensor | None) -> Tensor:
    """[B,T,D], 0 where a reset cuts the step off."""
    return value if reset is None else torch.where(reset[..., None], 0.0, value)


def _entering(call: Any, h: Tensor) -> Tensor:
    """m_t h_{t-1} [B,T,D]: what each step was given, in the order in which the scan goes."""
    time = h.shape[1]
    before = torch.roll(h, -1 if call.reverse else 1, 1)
    starts = _is_end(call, time, first=not call.reverse)
    initial = h.new_zeros(1, 1, 1) if call.h0 is None else _spread(call, call.h0.to(h.dtype), time, not call.reverse)
    return _unless_reset(torch.where(starts[:, None], initial, before), call.reset)


def _spread(call: Any, rows: Tensor, time: int, first: bool) -> Tensor:
    """[N,D] of the sequences as [B,T,D] or [B,1,D]: right at the first, or last, step of each."""
    if call.cu_seqlens is None:
        return rows[:, None]
    steps, present = _ends(call.cu_seqlens, time, first)
    spread = rows.new_zeros(time, rows.shape[1])
    return spread.index_add(0, steps, torch.where(present[:, None], rows, 0.0))[None] if time else spread[None]


def _picked(call: Any, values: Tensor, first: bool, absent: Tensor) -> Tensor:
    """[N,D]: a [B,T,D] at the first, or last, step of each sequence; ``absent`` [N,D] where it has no steps."""
    time = values.shape[1]
    if not time:
        return absent
    if call.cu_seqlens is None:
        return values[:, 0 if first else time - 1]
    steps, present = _ends(call.cu_seqlens, time, first)
    return torch.where(present[:, None], values[0, steps], absent)


def tangents(scan: Scan, call: Any, h: Tensor, moved: Any) -> tuple[Any, ...]:
    """Tangents of h [B,T,D] and h_last [N,D] of a scan's ``call``, and of a_prod where it has options.

    moved: those of x, a and h0, None for none.
    """
    wide = accumulator(call.x.dtype)
    states, (a, share) = h.to(wide), _gates(call, wide)
    inputs = torch.zeros_like(states) if moved.x is None else moved.x.to(wide)
    inputs = inputs if share is None else inputs * share
    gates = None if moved.a is None else moved.a.to(wide)
    if gates is not None:
        gates = a * gates if getattr(call, "log_a", False) else gates
        inputs = inputs + _times(gates, _entering(call, states))
        inputs = inputs if share is None else inputs - gates * call.x.to(wide)
    initial = None if moved.h0 is None else moved.h0.to(wide)
    where = (call.reset, call.cu_seqlens, call.reverse)
    along, last = scan(inputs, a, initial, *where)
    found = along.to(h.dtype), last
    if not hasattr(call, "with_a_prod"):
        return found
    if not call.with_a_prod:
        return *found, None
    if gates is None:
        return *found, torch.zeros_like(last)
    nothing, alone = torch.zeros_like(states), call._replace(h0=torch.ones_like(last))
    products, _ = scan(nothing, a, alone.h0, *where)
    return *found, scan(_times(gates, _entering(alone, products)), a, None, *where)[1]


def gradient(scan: Scan, call: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx, dA and dh0 of the gradient's ``call``, differentiable; dh0 is None without an h0."""
    wide = accumulator(call.dh.dtype)
    dh, time, (a, share) = call.dh.to(wide), call.dh.shape[1], _gates(call, wide)
    # the gate of the step after, which at a sequence's last step is the way of dh_last into it
    after, ends = torch.roll(a, 1 if call.reverse else -1, 1), _is_end(call, time, first=call.reverse)
    after = torch.where(ends.view(time, *[1] * (a.dim() - 2)), _one(a), _transposed(after))
    reset = call.reset
    if reset is not None:
        reset = torch.roll(reset, 1 if call.reverse else -1, 1) & ~ends
    last = None if call.dh_last is None else call.dh_last.to(wide)
    g, _ = scan(dh, after, last, reset, call.cu_seqlens, not call.reverse)
    dx, da = g, _outer(g, _entering(call, call.h.to(wide)), a)
    if a.dim() == dh.dim():
        dx, da = through_options(call, a, share, g, da)
    dh0 = None
    if call.h0 is not None:
        absent = torch.zeros_like(call.h0, dtype=wide) if last is None else last
        dh0 = _picked(call, _unless_reset(_times(a, g, transposed=True), call.reset), not call.reverse, absent)
    return dx.to(call.dh.dtype), da.to(call.a.dtype), dh0


def of_product(scan: Any, backward: Callable[..., Any], call: Any, da_prod: Tensor) -> Tensor:
    """What reaches a of a gradient's ``call`` from a_prod: that is the last state of the scan with x = 0 and h0 = 1.

    So it holds where gates are 0. backward: runs a call of the gradient.
    """
    wide = accumulator(call.dh.dtype)
    # like h and not like what reaches a_prod, over which vmap may map while nothing else is
    nothing, one = torch.zeros_like(call.h, dtype=wide), call.h.new_ones(da_prod.shape, dtype=wide)
    a = call.a.to(wide)
    products, *_ = scan(*scan.call(nothing, a, one, call.reset, call.cu_seqlens, call.reverse, call.log_a))
    alone = call._replace(dh=nothing, dh_last=da_prod, a=a, h=products, h0=one, x=None, convex=False)
    found: Tensor = backward(alone)[1]
    return found


class Rules(NamedTuple):
    """How an op's derivatives are made of the op.

    apart: of outputs that the gradient op does not know: the input that they depend on, and the rule of its gradient.
    """

    tangents: Callable[[Any, Any, Tensor, Any], tuple[Tensor | None, ...]]
    gradient: Callable[[Any, Any], tuple[Tensor | None, ...]]
    apart: Mapping[str, tuple[str, Callable[..., Tensor]]] = MappingProxyType({})


def _without_options(scan: Any) -> Scan:
    """linear_scan of its first six arguments, and only h and h_last of what it gives."""

    def scanned(*args: Any) -> tuple[Tensor, Tensor]:
        h, h_last, _ = scan(*scan.call(*args))
        return h, h_last

    return scanned


def _linear_tangents(scan: Any, call: Any, h: Tensor, moved: Any) -> tuple[Tensor | None, ...]:
    return tangents(_without_options(scan), call, h, moved)


def _linear_gradient(scan: Any, call: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    return gradient(_without_options(scan), call)


def _on_channels(scan: Scan) -> Scan:
    """complex_scan with two channels for each number of x, h0 and what it gives."""

    def scanned(x: Tensor, a: Tensor, h0: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        h, last = scan(paired(x), a, None if h0 is None else paired(h0), *rest)
        return h.flatten(-2), last.flatten(-2)

    return scanned


def _complex_tangents(scan: Scan, call: Any, h: Tensor, moved: Any) -> tuple[Tensor, Tensor]:
    along, last = tangents(_on_channels(scan), flat(call), h.flatten(-2), flat(moved))
    return paired(along), paired(last)


def _complex_gradient(scan: Scan, call: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    dx, da, dh0 = gradient(_on_channels(scan), flat(call))
    return paired(dx), da, None if dh0 is None else paired(dh0)


def _norm_tangents(norm: Any, call: Any, y: Tensor, moved: Any) -> tuple[Tensor | None, ...]:
    """Tangents of y and s of rms_norm."""
    wide = accumulator(call.x.dtype)
    moving = [tangent.to(wide) for tangent in (moved.x, moved.residual) if tangent is not None]
    s = call.x if call.residual is None else call.x + call.residual
    along = sum(moving, torch.zeros_like(s, dtype=wide))
    values, factor = s.to(wide), call.weight_offset + call.weight.to(wide)
    r = torch.rsqrt(values.square().mean(-1, keepdim=True) + call.eps)
    normed = values * r
    found = (along * r - normed * (normed * along * r).mean(-1, keepdim=True)) * factor
    if moved.weight is not None:
        found = found + normed * moved.weight.to(wide)
    return found.to(y.dtype), None if call.residual is None else along.to(y.dtype)


def _norm_gradient(norm: Any, call: Any) -> tuple[Tensor, ...]:
    """dx and dweight of rms_norm, in PyTorch's operations."""
    return eager_composed.gradients(call)


def _apart(call: Any) -> Any:
    """gate, value and what comes with them of a call of gated_gelu, of geglu or of a gradient, by name."""
    found = call._asdict()
    if (x := found.pop("x", None)) is not None:
        found |= {"gate": x.select(-2, 0), "value": x.select(-2, 1)}
    return found


def _gelu_tangents(operator: Any, call: Any, out: Tensor, moved: Any) -> tuple[Tensor | None, ...]:
    """d out = gelu'(gate) value d gate + gelu(gate) d value."""
    given, change, wide = _apart(call), _apart(moved), accumulator(call[0].dtype)
    made, slope = gelu_and_slope(given["gate"].to(wide))
    terms = []
    if (gate := change.get("gate")) is not None:
        terms.append(slope * given["value"].to(wide) * gate.to(wide))
    if (value := change.get("value")) is not None:
        terms.append(made * value.to(wide))
    return (sum(terms[1:], terms[0]).to(out.dtype),)


def _gelu_gradient(operator: Any, call: Any) -> tuple[Tensor, ...]:
    """dgate and dvalue of the gradient's ``call``, or both in one tensor where gate and value are; differentiable."""
    dtype = call.dout.dtype
    given = {name: tensor.to(accumulator(dtype)) for name, tensor in _apart(call).items()}
    made, slope = gelu_and_slope(given["gate"])
    found = (given["dout"] * given["value"] * slope).to(dtype), (given["dout"] * made).to(dtype)
    return (torch.stack(found, dim=-2),) if "x" in call._fields else found


ADDED = {"temporal_conv1d": {"residual": "y"}, "rms_norm": {"residual": "x"}}
"""Inputs of which an op's gradient op knows nothing, as what they are added to has their gradient: what reaches that
output, or the gradient of that input."""

INSTEAD = {"rms_norm": {"x": ("residual", "s")}}
"""Inputs in place of which a gradient op is given an output, and only that is kept, if a call has such an argument."""

RULES = {
    "rms_norm": Rules(_norm_tangents, _norm_gradient),
    "linear_scan": Rules(_linear_tangents, _linear_gradient, {"a_prod": ("a", of_product)}),
    "block_diagonal_scan": Rules(tangents, gradient),
    "complex_scan": Rules(_complex_tangents, _complex_gradient),
    "gated_gelu": Rules(_gelu_tangents, _gelu_gradient),
    "geglu": Rules(_gelu_tangents, _gelu_gradient),
}
"""Ops with tangents and with a gradient that has gradients; the others have a gradient alone."""
