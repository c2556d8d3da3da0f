"""Batched matrix products whose results keep the accumulator's precision."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import accumulator


def has_unrounded(tensor: Tensor) -> bool:
    """Whether the device multiplies this half-precision data and can return the float32 sums."""
    return tensor.dtype != accumulator(tensor.dtype) and tensor.is_cuda and torch.version.hip is None


def unrounded(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, [N, i, j] @ [N, j, k], in the accumulator's dtype and not rounded to the data's in between."""
    if has_unrounded(left):
        return torch.bmm(left, right, out_dtype=torch.float32)
    wide = accumulator(left.dtype)
    return torch.bmm(left.to(wide), right.to(wide))


def fastest(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in the data's dtype, unrounded where that costs nothing."""
    return unrounded(left, right) if has_unrounded(left) else torch.bmm(left, right)
