"""What a convolution's sum goes through before it is rounded, by name, and its slope.

silu(z) = z s(z)                          s: the sigmoid
gelu(z) = z s(2 SCALE (z + CUBIC z^3))    its tanh form; see ops/_gelu.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.ops import _gelu

CODES: dict[str | None, int] = {None: 0, "silu": 1, "gelu": 2}
"""Activations as Triton kernels know them."""

NAMES = ("silu", "gelu")
"""Those that do something, which are flags of cases too."""


def check(activation: Any) -> None:
    """Raise ArgumentError where there is no such activation."""
    if not (activation is None or (isinstance(activation, str) and activation in NAMES)):
        raise errors.ArgumentError(f"activation is {activation!r}, expected None, 'silu' or 'gelu'")


def apply(activation: str | None, sums: Tensor) -> Tensor:
    """The activation of ``sums``, in their dtype; they themselves where there is none."""
    if activation == "silu":
        return torch.nn.functional.silu(sums)
    if activation == "gelu":
        return torch.nn.functional.gelu(sums, approximate="tanh")
    return sums


def gelu_and_slope(y: Tensor) -> tuple[Tensor, Tensor]:
    """gelu's tanh form and its derivative."""
    t = torch.tanh(_gelu.SCALE * (y + _gelu.CUBIC * y**3))
    inner = _gelu.SCALE * (1 + 3 * _gelu.CUBIC * y**2)
    return 0.5 * y * (1 + t), 0.5 * (1 + t) + 0.5 * y * (1 - t**2) * inner


def through(activation: str, gradient: Tensor, sums: Tensor) -> Tensor:
    """The gradient of ``sums`` from that of what the activation made of them, of one dtype."""
    if activation == "silu":
        return torch.ops.aten.silu_backward(gradient, sums)  # type: ignore[no-any-return]
    return torch.ops.aten.gelu_backward(gradient, sums, approximate="tanh")  # type: ignore[no-any-return]
