"""What treats every token by itself: the norm and the gated MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from griffin_kernels.nn.drawing import draw_linear, factory_of, positive, undrawn
from griffin_kernels.nn.linear_layers import Linear
from griffin_kernels.nn.sharded import local


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

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]; the result has its shape and dtype."""
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = 1.0 + local(self.weight).to(compute)
        return functional.rms_norm(x.to(compute), scale.shape, scale, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class GatedMLP(nn.Module):
    """down(gelu(gate) * value), gate and value [..., mlp_width] from one matmul; gelu in its tanh approximation.

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
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(functional.gelu(gate, approximate="tanh") * value)  # type: ignore[no-any-return]
