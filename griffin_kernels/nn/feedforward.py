"""What treats every token by itself: the norm and the gated MLP."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from griffin_kernels.functional import geglu, rms_norm
from griffin_kernels.nn.drawing import draw_linear, factory_of, positive, undrawn
from griffin_kernels.nn.linear_layers import Linear
from griffin_kernels.nn.sharded import local
from griffin_kernels.ops.geglu.cost import LEAST_GATED


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) over the last dim, in float32 or better; weight [width] begins at 0.

    The weight is an offset from 1, as both published checkpoints store it.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(width=width)
        factory = factory_of(device, dtype)
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width, **factory))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    @overload
    def forward(self, x: Tensor) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x: [..., width]; the result has its shape and dtype.

        With a residual like x: (the norm of s, s) of the sum s = x + residual. Where they differ in dtype, as under
        autocast, s has the wider one.
        """
        weight = local(self.weight)
        if torch.compiler.is_compiling():  # a compiler fuses what it can look into with its neighbours
            s = x if residual is None else x + residual
            compute = torch.float64 if s.dtype == torch.float64 else torch.float32
            y = functional.rms_norm(s.to(compute), weight.shape, 1.0 + weight.to(compute), self.eps).to(s.dtype)
            return y if residual is None else (y, s)
        if residual is None:
            return rms_norm(x, weight, eps=self.eps, weight_offset=1.0)
        if x.dtype != residual.dtype:
            wide = torch.promote_types(x.dtype, residual.dtype)
            x, residual = x.to(wide), residual.to(wide)
        return rms_norm(x, weight, eps=self.eps, residual=residual, weight_offset=1.0)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def gated(both: Tensor) -> Tensor:
    """``geglu``; in PyTorch's own operators for few numbers on a CPU, and for compilers, which fuse these as well."""
    # compilers are asked about first: a size that is compared becomes part of their graphs
    if not torch.compiler.is_compiling() and (both.device.type != "cpu" or both.numel() >= LEAST_GATED):
        return geglu(both)
    gate, value = both.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * value


class GatedMLP(nn.Module):
    """down(gelu(gate) * value), gate and value [..., mlp_width] from one matmul; gelu in its tanh form. See ``geglu``.

    ``up.weight``: [2 mlp_width, width], the gate's rows first.
    """

    def __init__(
        self,
        width: int,
        mlp_width: int,
        *,
        bias: bool = True,
        draw: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(width=width, mlp_width=mlp_width)
        factory = factory_of(device, dtype)
        self.up = undrawn(Linear, width, 2 * mlp_width, bias=bias, factory=factory)
        self.down = undrawn(Linear, mlp_width, width, bias=bias, factory=factory)
        if draw:
            self.reset_parameters()

    def reset_parameters(self, last: float = 1.0) -> None:
        """last: variance of the last matrix, in 1 / inputs; published models have 2 / layers."""
        draw_linear(self.up)
        draw_linear(self.down, last)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]; the result has its shape and dtype."""
        return self.down(gated(self.up(x)))  # type: ignore[no-any-return]
