"""Linear layers with weights in int8, for decoding, which is bound by reading weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from griffin_kernels import errors
from griffin_kernels.nn.linear_layers import Linear

LEVELS = 127
"""Weights are -127 to 127 times their row's scale."""
MOST_ROWS = 16
"""Rows of x up to which reading int8 weights for each is quicker than widening them once, by measurement."""
AT_ONCE = 2**21
"""Weights that are widened at once: they are still in the caches when they are multiplied."""


@torch.library.custom_op("griffin_kernels::int8_linear", mutates_args=(), device_types="cpu")
def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """[B, N] in x's dtype. x: [B, K]. weight: int8 [N, K]. scale, bias: float32 [N]. All contiguous; no gradients."""
    if x.shape[0] <= MOST_ROWS and x.dtype != torch.float64:
        from griffin_kernels.ops._few_rows import few_rows  # with numba, which other layers do without

        few = few_rows(x.float(), weight, scale, bias)
        return few if few.dtype == x.dtype else few.to(x.dtype)
    y = x.new_empty(x.shape[0], weight.shape[0])
    step = max(1, AT_ONCE // weight.shape[1])
    widened = x.new_empty(step, weight.shape[1])
    scale = scale.to(x.dtype)
    for start in range(0, weight.shape[0], step):
        part = weight[start : start + step]
        rows = widened[: part.shape[0]].copy_(part)
        torch.mul(x @ rows.T, scale[start : start + step], out=y[:, start : start + step])
    return y if bias is None else y.add_(bias.to(x.dtype))


@_int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


class Int8Linear(nn.Module):
    """x W^T + bias, W = weight * scale: int8 weights [outputs, inputs], a float32 scale for each output.

    x keeps its dtype, under autocast that of autocast, and is not quantised. On a CPU up to 16 rows of x, as in
    decoding, are multiplied with the int8 weights as they are read, in float32 and rounded once; for more rows weights
    are widened to x's dtype, some megabytes at a time. Gradients and other devices take all of them at once. Weights
    have no gradient; x and the bias have.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        """weight: int8 [outputs, inputs]. scale: [outputs]. bias: [outputs], a parameter, or None. None is copied."""
        super().__init__()
        if weight.dtype != torch.int8 or weight.dim() != 2:
            raise errors.ArgumentError(f"weight: {weight.dtype} {list(weight.shape)}, expected int8 [outputs, inputs]")
        for name, given in (("scale", scale), ("bias", bias)):
            if given is not None and given.shape != weight.shape[:1]:
                raise errors.ShapeError(f"{name}: shape {list(given.shape)}, expected [{weight.shape[0]}]")
        self.out_features, self.in_features = weight.shape
        if not self.in_features:
            raise errors.ArgumentError("weight: no inputs, expected at least 1")
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale.float().contiguous())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, bias.requires_grad))

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """Of a linear layer with floating-point weights, or with those of torchao's ``Int8WeightOnlyConfig``.

        Scales are the largest magnitude of a row over 127; weights are rounded to nearest. torchao's are taken as they
        are. Raises ArgumentError for weights of another kind.
        """
        weight: Any = linear.weight
        if type(weight).__name__ == "Int8Tensor":
            dynamic = getattr(weight, "act_quant_kwargs", None) is not None or weight.act_pre_scale is not None
            if dynamic or weight.scale.numel() != weight.shape[0]:
                kind = "torchao's Int8WeightOnlyConfig(granularity=PerRow())"
                raise errors.ArgumentError(f"weight: int8 with quantised activations or other scales, expected {kind}")
            return cls(weight.qdata, weight.scale.flatten(), linear.bias)
        if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point():
            raise errors.ArgumentError(f"weight: a {type(weight).__name__} of {weight.dtype}, expected floats")
        largest = weight.float().abs().amax(1)
        scale = torch.where(largest > 0, largest / LEVELS, 1.0)
        return cls((weight.float() / scale[:, None]).round().to(torch.int8), scale, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., inputs], floating-point; [..., outputs] in its dtype."""
        if not x.is_floating_point():
            raise errors.DtypeError(f"x: dtype {x.dtype}, expected a floating-point one")
        if x.shape[-1:] != (self.in_features,):
            raise errors.ShapeError(f"x: shape {list(x.shape)}, expected [..., {self.in_features}]")
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        training = torch.is_grad_enabled() and (x.requires_grad or self._trains())
        if kind == "cpu" and not training:
            bias = None if self.bias is None else self.bias.float()
            flat = x.reshape(-1, self.in_features).contiguous()
            found: Tensor = _int8_linear(flat, self.weight, self.scale.float(), bias)
            return found.view(*x.shape[:-1], self.out_features)
        y = functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _trains(self) -> bool:
        return self.bias is not None and self.bias.requires_grad

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def int8_linears_(module: nn.Module) -> nn.Module:
    """Replace each ``nn.Linear`` inside a module by an ``Int8Linear``, in place; returns the module.

    Embeddings, gates, convolutions and norms stay as they are, and so do other subclasses of ``nn.Linear``. Quantise
    after loading: checkpoints hold floating-point weights. Raises as ``Int8Linear.from_linear``, naming the layer.
    """
    for name, parent in list(module.named_modules()):
        for child, linear in list(parent.named_children()):
            if type(linear) in (nn.Linear, Linear):
                try:
                    setattr(parent, child, Int8Linear.from_linear(linear))
                except errors.ArgumentError as error:
                    raise errors.ArgumentError(f"{name}.{child}: {error}".lstrip(".")) from None
    return module
