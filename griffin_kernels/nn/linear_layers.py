"""Linear layers that read bfloat16 weights at the memory's speed where there is one token to multiply them with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from griffin_kernels.functional._bridge import is_plain, wants_gradient
from griffin_kernels.nn.sharded import local

MOST_ROWS = 2
"""Rows of x up to which reading the weights for each is quicker than torch's product, by measurement."""

LEAST_WEIGHTS = 2**20
"""Of fewer, calling takes longer than reading them."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear``; on a CPU, one or two rows of bfloat16 x and many weights without it.

    torch widens the weights for a product of matrices, which takes longer than reading them. Sums are float32 and
    rounded once, in both. x: [..., K], weight: [N, K], bias: [N].
    """
    if (
        weight.dtype == torch.bfloat16
        and is_plain((x, weight, bias))  # asked first: sizes of a tracer's tensors are part of its graph
        and torch._C._get_tracing_state() is None
        and weight.numel() >= LEAST_WEIGHTS
        and 0 < x.numel() <= MOST_ROWS * weight.shape[1] == MOST_ROWS * x.shape[-1]
        and weight.device.type == x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and (bias is None or bias.dtype == torch.bfloat16)
        and weight.is_contiguous()
        and not wants_gradient((x, weight, bias))
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
    ):
        from griffin_kernels.ops._few_rows import few_rows  # with numba, which other layers do without

        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        y = few_rows(rows, weight.detach(), None, None if bias is None else bias.detach().float())
        return y.to(torch.bfloat16).view(*x.shape[:-1], weight.shape[0])
    return functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` that decodes faster with bfloat16 weights on a CPU; see ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, local(self.weight), None if self.bias is None else local(self.bias))
