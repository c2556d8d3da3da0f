"""Gates by PyTorch's own elementwise steps, for the unfused variants of rg_lru_gated and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import accumulator
from griffin_kernels.ops.rg_lru import _lru_eager


def terms(call: Any) -> tuple[Tensor, ...]:
    """As ``_lru_eager.terms``: i, r, log a, v and m [B,T,D], none of which is the memory of an input."""
    wide = accumulator(call.x.dtype)
    i, r = (torch.sigmoid(z.to(wide)) for z in (call.input_gate, call.recurrence_gate))
    return _lru_eager.terms_of(call, i, r, call.c)
