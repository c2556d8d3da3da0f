"""Models of every family with windows of a few tokens, in float64, and ids to feed them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from griffin_kernels.models import Griffin, preset

WINDOW = 6
FAMILIES = ("hawk", "griffin", "mqa")
VOCABULARY = 40


def small(family: str, dtype: torch.dtype = torch.float64, seed: int = 3, **changes: Any) -> Griffin:
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "width": 32, "mlp_width": 48, "lru_width": 48, "head_dim": 8, "window": WINDOW}
    model = Griffin(replace(preset(f"{family}-tiny"), **sizes | changes), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms begin at 0, where they would hide mistakes
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def draw(batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))
