"""How the layers' parameters are made and drawn: the initialisation of google-deepmind/recurrentgemma."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from griffin_kernels import errors

MIN_RADIUS, MAX_RADIUS = 0.9, 0.999
"""a_param is drawn so that exp(-softplus(a_param))^2 is uniform between the squares of these."""

Factory = dict[str, Any]
"""device and dtype of parameters, as torch's layers take them."""

Layer = TypeVar("Layer", bound=nn.Module)


def factory_of(device: torch.device | str | None, dtype: torch.dtype | None) -> Factory:
    """torch's default device where none is given; ``torch.empty`` knows its default dtype."""
    return {"device": torch.get_default_device() if device is None else torch.device(device), "dtype": dtype}


def undrawn(module: type[Layer], *sizes: int, factory: Factory, **options: bool) -> Layer:
    """A layer whose weights are not drawn yet; unlike torch's ``skip_init`` it can be made under FakeTensorMode."""
    layer = module(*sizes, **options, **factory | {"device": "meta"})
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(torch.empty_like(parameter, device=factory["device"])))
    return layer


def positive(**sizes: int) -> None:
    """Raise ArgumentError for the first size that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise errors.ArgumentError(f"{name} is {size}, expected at least 1")


def draw_linear(linear: nn.Linear, variance: float = 1.0) -> None:
    """Weights normal with variance ``variance / inputs``, biases 0."""
    nn.init.normal_(linear.weight, std=(variance / linear.in_features) ** 0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def draw_taps(weight: Tensor, taps: int) -> None:
    """Of the temporal convolution: normal with variance 0.01 / taps, as published."""
    nn.init.normal_(weight, std=math.sqrt(0.01 / taps))


def draw_gate(weight: Tensor) -> None:
    """Of a block-diagonal gate, [H, n, n]: normal with variance 1 / n."""
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


@torch.no_grad()
def draw_decay(a_param: Tensor) -> None:
    """exp(-softplus(a_param))^2 uniform in [0.9^2, 0.999^2]."""
    square = torch.empty_like(a_param, dtype=torch.float32).uniform_(MIN_RADIUS**2, MAX_RADIUS**2)
    a_param.copy_(torch.log(torch.rsqrt(square) - 1))  # softplus of it is -log a
