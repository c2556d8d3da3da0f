"""What the forms of scaled_dot_product_attention share: the mask of visible slots, and what they cannot do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Case
from griffin_kernels.device import Device


def visible(k_cache: Tensor, positions: Tensor) -> Tensor:
    """bool [B, 1, 1, W]."""
    slots = torch.arange(k_cache.shape[1], device=k_cache.device, dtype=torch.int64)
    return (slots <= positions[:, None])[:, None, None]


def reject(case: Case, device: Device, config: Any) -> str | None:
    return "scaled_dot_product_attention has no softcap" if "softcap" in case.flags else None
