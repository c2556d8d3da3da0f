"""Gates of any size whose scan stays in range, for tests: data of linear_scan's cases with ``wild``.

Half of the channels are waves: the state rises by a power of two per step from ``low`` to ``high`` and falls again, and
x is zero. Products of gates within a wave overflow, or underflow and grow again, while every state is a power of two
that the accumulator holds, so that the right answer is exact. The gradient has waves too: with dh = 0 the gradient that
reaches step t is dh_last times the state at the end over the state at t, and dh_last = low * high / state keeps it in
range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = 6
"""Different channels: three waves, one of huge gates on a state of zero, one that mixes signs and zeros, one tame."""

_ANY: dict[str, tuple[tuple[int, int, int], ...]] = {
    # (exponent per step, steps up or down, exponent of high): the first two rise first, from the least normal float32;
    # the last falls first, its product underflows
    "float32": ((4, 32, 2), (64, 2, 2), (52, 3, 8)),
    "bfloat16": ((4, 32, 2), (64, 2, 2), (52, 3, 8)),
    "float16": ((4, 32, 2), (13, 10, 4), (13, 12, 8)),
    "float64": ((32, 32, 2), (512, 2, 2), (360, 3, 8)),
}


def _kinds(width: int) -> Tensor:
    """int64 [D]: which kind a channel is."""
    return torch.arange(width, dtype=torch.int64, device="cpu") % KINDS


def _wave(time: int, step: int, length: int, high: int, falls: bool) -> tuple[Tensor, Tensor]:
    """(exponents of a [T], exponents of the state before each step and after the last [T+1])."""
    up = torch.arange(time, dtype=torch.int64, device="cpu") // length % 2 == int(falls)
    gates = torch.where(up, step, -step)
    start = high if falls else high - step * length
    return gates, start + torch.cat([gates.new_zeros(1), gates.cumsum(0)])


def _waves(dtype: torch.dtype, time: int) -> list[tuple[Tensor, Tensor, int]]:
    """(gates, states, exponent of low * high) of every wave, in visiting order."""
    found = []
    for index, (step, length, high) in enumerate(_ANY[str(dtype).removeprefix("torch.")]):
        found.append((*_wave(time, step, length, high, falls=index == 2), 2 * high - step * length))
    return found


def gates_and_inputs(
    dtype: torch.dtype, batch: int, time: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(a, x), float64 [B,T,D], in visiting order."""
    a = torch.rand(batch, time, width, generator=generator, dtype=torch.float64, device="cpu") * 0.099 + 0.9
    x = torch.randn(batch, time, width, generator=generator, dtype=torch.float64, device="cpu")
    kinds, most = _kinds(width), torch.finfo(dtype).max
    for kind, (gates, _, _) in enumerate(_waves(dtype, time)):
        a[..., kinds == kind] = 2.0 ** gates.double()[:, None]
        x[..., kinds == kind] = 0.0
    negative = torch.rand(time, 1, generator=generator, dtype=torch.float64, device="cpu") < 0.5
    a[..., kinds == 3], x[..., kinds == 3] = most * (1.0 - 2.0 * negative.double()), 0.0
    # a state of one, which a = -0 ends before huge gates come
    cycle = torch.arange(time, dtype=torch.int64, device="cpu") % 8
    mixed = torch.tensor([most, -most, most, 0.0, 1.0, -1.0, -0.0, 1.0], dtype=torch.float64, device="cpu")
    a[..., kinds == 4], x[..., kinds == 4] = mixed[cycle][:, None], (cycle == 3).double()[:, None]
    return a, x


def initial(dtype: torch.dtype, time: int, width: int, starts: list[int]) -> Tensor:
    """h0, float64 [N,D], of sequences that begin at these steps, in visiting order."""
    h0 = torch.zeros(len(starts), width, dtype=torch.float64, device="cpu")
    for kind, (_, states, _) in enumerate(_waves(dtype, time)):
        h0[:, _kinds(width) == kind] = 2.0 ** states.double()[starts][:, None]
    return h0


def gradients(dtype: torch.dtype, batch: int, time: int, width: int, ends: list[int]) -> tuple[Tensor, Tensor]:
    """(dh [B,T,D], dh_last [N,D]), float64, of sequences that end before these steps, in visiting order."""
    kinds = _kinds(width)
    dh = torch.zeros(batch, time, width, dtype=torch.float64, device="cpu")
    last = torch.zeros(len(ends), width, dtype=torch.float64, device="cpu")
    for kind, (_, states, both) in enumerate(_waves(dtype, time)):
        last[:, kinds == kind] = 2.0 ** (both - states.double()[ends])[:, None]
    # of a step that a = -0 follows, and from which no huge gate is reached but through a = 0
    dh[:, 5::8, kinds == 4] = 1.0
    dh[..., kinds == 5], last[:, kinds == 5] = math.pi, -math.pi
    return dh, last
