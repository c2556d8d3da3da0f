"""What the eager variants share: reduce every form of the scan to one plain scan, and the backward to a forward.

A *core* is ``core(x, a, cut, config) -> h`` for x, a [B, T, D], for x [B, T, H, n] and matrices a [B, T, H, n, n], or
for complex numbers x, a [B, T, D, 2], in the accumulator's dtype, from a zero state, forward in time. config: of the
variant; ``through`` binds it. Resets, packed sequences, h0 and direction are folded in before it, with A_t h0 in place
of a_t h0 for matrices. Outside of it complex x and states are flat, [B, T, 2 D], two channels for each number:

    log_a, convex, constant gates: a := exp(a), x := (1 - a) x, a spread over time
    reset at t:                    cut_t
    a sequence starts at t:        x_t := x_t + a_t * h0,  cut_t
    reverse:                       flip time

cut is bool [B or 1, T], or None: where it is True the state of the step before is not used, not even as a factor of
zero, so that no NaN or infinity crosses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import Variant, accumulator
from griffin_kernels.ops._variants import backward_of, through
from griffin_kernels.ops.linear_scan.op import MODULUS, gates_and_shares, is_constant, rows_of, through_options

Core = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def ends(cu_seqlens: Tensor | None, time: int, reverse: bool) -> tuple[Any, Any, Any]:
    """What takes, of [N,...], the rows with steps, and of [B,T,...], their first and last steps in visiting order."""
    if cu_seqlens is None:
        first, last = (time - 1, 0) if reverse else (0, time - 1)
        return slice(None), (slice(None), first), (slice(None), last)
    starts, stops = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    nonempty = stops > starts
    begin, end = starts[nonempty], stops[nonempty] - 1
    return (nonempty, (0, end), (0, begin)) if reverse else (nonempty, (0, begin), (0, end))


def cuts(reset: Tensor | None, cu_seqlens: Tensor | None, time: int, reverse: bool) -> Tensor | None:
    """bool [B or 1, T], True where no earlier state enters a step; None where all steps follow each other."""
    if cu_seqlens is None:
        return reset
    starts = torch.zeros(1, time, dtype=torch.bool, device=cu_seqlens.device)
    starts[ends(cu_seqlens, time, reverse)[1]] = True
    return starts if reset is None else starts | reset


def unless(stop: Tensor | None, value: Tensor) -> Tensor:
    """``value`` [..., further dimensions] with zeros where ``stop`` [...] is True, whatever was there."""
    return (
        value if stop is None else value.masked_fill(stop.reshape(*stop.shape, *[1] * (value.dim() - stop.dim())), 0.0)
    )


def sequential(x: Tensor, a: Tensor, cut: Tensor | None, config: Any = None) -> Tensor:
    """The core that is right for every a: h [B,T,D], one fused multiply-add per step."""
    h = torch.empty_like(x, memory_format=torch.contiguous_format)
    carry = x[:, 0]
    h[:, 0] = carry
    for t in range(1, x.shape[1]):
        carry = torch.addcmul(x[:, t], a[:, t], unless(None if cut is None else cut[:, t], carry))
        h[:, t] = carry
    return h


def careful(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``core``, which multiplies gates with each other, for gates of any size: step by step where one exceeds 1.

    A product of such gates may overflow where the state does not, or underflow and grow again. On a GPU the look at the
    gates waits for the device; a call that a CUDA graph records cannot wait, and goes step by step.
    """
    return lambda x, a, cut, config: (core if _within_one(a) else sequential)(x, a, cut, config)


def recorded(tensor: Tensor) -> bool:
    """Whether a CUDA graph records what is done, so that no value can be looked at."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _within_one(gates: Tensor) -> bool:
    """Whether every finite gate is in [-1, 1]. NaN and infinity must not change how the others are computed."""
    if recorded(gates):
        return False
    if gates.numel() == 0:
        return True
    if gates.is_complex():
        return not bool(((gates.abs() > MODULUS) & gates.isfinite()).any())
    low, high = torch.aminmax(gates)
    if bool(torch.maximum(high, -low) <= 1):
        return True
    return not bool(((gates.abs() > 1) & gates.isfinite()).any())


class Products(NamedTuple):
    """What a scan multiplies a by: gates by states, or matrices.

    times: ``(a, states) -> states``. transposed: of a. outer: ``(gradients, states, dtype) -> gradient of a``.
    """

    times: Callable[[Tensor, Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]
    outer: Callable[[Tensor, Tensor, torch.dtype], Tensor]


GATES = Products(torch.mul, lambda a: a, lambda g, before, dtype: (g * before).to(dtype))


def apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[..., H, n, n] times [..., H, n] or [..., H * n]; shaped as the vectors."""
    return torch.matmul(matrices, vectors.reshape(*matrices.shape[:-1], 1)).reshape(vectors.shape)


def numbers(pairs: Tensor) -> Tensor:
    """Complex numbers [..., D] of pairs [..., D, 2]: a view, where strides allow one."""
    even = not any(number % 2 for number in (pairs.storage_offset(), *pairs.stride()[:-1]))
    if not even or pairs.stride(-1) != 1:
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs)


def _flat_numbers(flat: Tensor) -> Tensor:
    """Complex numbers [..., D] of channels [..., 2 D]."""
    return numbers(flat.unflatten(-1, (flat.shape[-1] // 2, 2)))


def _complex_outer(g: Tensor, before: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.view_as_real(_flat_numbers(g) * _flat_numbers(before).conj()).to(dtype)


COMPLEX = Products(
    lambda a, states: torch.view_as_real(numbers(a) * _flat_numbers(states)).flatten(-2),
    lambda a: torch.stack((a[..., 0], -a[..., 1]), dim=-1),  # the conjugate
    _complex_outer,
)


def on_numbers(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A core of gates, which takes complex tensors too, for pairs."""
    return lambda x, a, cut, config: torch.view_as_real(core(numbers(x), numbers(a), cut, config))


def products_of(a: Tensor) -> Products:
    """Those of gates [B,T,D], of matrices [B,T,H,n,n], or of complex gates [B,T,D,2]."""
    if a.ndim == 3:
        return GATES
    if a.ndim == 4:
        return COMPLEX

    def outer(g: Tensor, before: Tensor, dtype: torch.dtype) -> Tensor:
        rows, columns = g.reshape(a.shape[:-1]), before.reshape(a.shape[:-1])
        out = torch.empty(a.shape, dtype=dtype, device=g.device)
        return torch.mul(rows[..., :, None], columns[..., None, :], out=out)

    return Products(apply, lambda matrices: matrices.mT, outer)


def gated(call: Any) -> tuple[Tensor, Tensor | None]:
    """Gates [B,T,D] or matrices in the accumulator's dtype, and what a convex scan multiplies x by, or None."""
    a = call.a.to(accumulator(call[0].dtype))
    if a.ndim > 3:
        return a, None
    gate, share = gates_and_shares(call._replace(a=a))
    return gate.expand(call[0].shape), share


def forward(core: Core, call: Any) -> tuple[Tensor, Tensor]:
    """block_diagonal_scan, or linear_scan without its product, through ``core``.

    Returns h [B,T,D] and h_last [B or N, D].
    """
    x, _, h0, reset, cu_seqlens, reverse = call[:6]
    products = products_of(call.a)
    wide = accumulator(x.dtype)
    values, (gate, share) = x.to(wide), gated(call)
    if share is not None:
        values = values * share
    cut = cuts(reset, cu_seqlens, x.shape[1], reverse)
    rows, first, last = ends(cu_seqlens, x.shape[1], reverse)
    if h0 is not None:
        values = values.clone()
        stops = None if reset is None else reset[first]
        values[first] += products.times(gate[first], unless(stops, h0[rows].to(wide)))
    h = directed(core, values, gate, cut, reverse)
    # a sequence without steps ends where it began
    h_last = h.new_zeros(rows_of(x.shape[0], cu_seqlens), x.shape[2]) if h0 is None else h0.to(wide, copy=True)
    h_last[rows] = h[last]
    return h.to(x.dtype).contiguous(), h_last


def forward_and_product(core: Core, call: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """linear_scan through ``core``, which runs twice where the product of the gates is asked for."""
    h, h_last = forward(core, call)
    if not call.with_a_prod:
        return h, h_last, None
    nothing = torch.zeros_like(call.x, dtype=h_last.dtype)
    return h, h_last, forward(core, call._replace(x=nothing, h0=torch.ones_like(h_last), convex=False))[1]


def directed(core: Core, x: Tensor, a: Tensor, cut: Tensor | None, reverse: bool) -> Tensor:
    """``core`` in either direction of time, on x and h [B,T,D]."""
    vectors = x.reshape(a.shape[:4])
    if not reverse:
        return core(vectors, a, cut).reshape(x.shape)
    return core(vectors.flip(1), a.flip(1), None if cut is None else cut.flip(1)).flip(1).reshape(x.shape)


def handed_back(values: Tensor, reverse: bool) -> Tensor:
    """[B,T,...] of the step that comes next in the order of the forward pass; zeros at the last one."""
    shifted = torch.zeros_like(values)
    if reverse:
        shifted[:, 1:] = values[:, :-1]
    else:
        shifted[:, :-1] = values[:, 1:]
    return shifted


def backward(core: Core, call: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient through ``core``: a scan in the other direction whose gate is a, transposed, one step later.

    Takes the call of linear_scan's gradient, or of block_diagonal_scan's.

    Returns dx [B,T,D], da like a and dh0 [B or N, D], or None where there was no h0.
    """
    dh, dh_last, a, h, h0, reset, cu_seqlens = call[:7]
    reverse, wide, products = call.reverse, accumulator(dh.dtype), products_of(a)
    cut = cuts(reset, cu_seqlens, dh.shape[1], reverse)
    rows, first, last = ends(cu_seqlens, dh.shape[1], reverse)
    factors, share = gated(call)
    gate = products.transposed(factors)
    incoming = dh.to(wide)
    if dh_last is not None:
        incoming = incoming.clone()
        incoming[last] += dh_last[rows].to(wide)
    ended = None if cut is None else handed_back(cut, reverse)
    g = directed(core, incoming, handed_back(unless(cut, gate), reverse), ended, not reverse)  # [B, T, D]
    before = handed_back(h, not reverse).to(wide)
    before[first] = 0.0 if h0 is None else h0[rows].to(wide)
    plain = a.ndim > 3 or not (call.log_a or call.convex or is_constant(call))
    da = unless(reset, products.outer(g, before, a.dtype if plain else wide))
    dh0 = None
    if h0 is not None:
        dh0 = torch.zeros(h0.shape, dtype=wide, device=a.device) if dh_last is None else dh_last.to(wide, copy=True)
        stops = None if reset is None else reset[first]
        dh0[rows] = unless(stops, products.times(gate[first], g[first]))
    dx = g
    if not plain:
        dx, da = through_options(call, factors, share, g, da)
    return dx.to(dh.dtype).contiguous(), da.to(a.dtype), dh0


def gradient_of(form: Any) -> Variant:
    """The variant of the gradient that has the core of a form of a scan, a module."""
    return backward_of(form.VARIANT, through(backward, form.core))
