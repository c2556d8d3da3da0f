"""One token of the recurrence in PyTorch by its multiply-add, with a kernel fewer than eager.unfused.

    h = addcmul(x, a, h)

Runs on every device and dtype; launches bind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _slots
from griffin_kernels.ops.linear_scan_step.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    h, at = call.h, _slots.of(call, call.h.shape[0])
    x, a = call.x.to(h.dtype), call.a.to(h.dtype)
    new = torch.addcmul(x, a.exp() if call.log_a else a, _slots.rows(h, at.read))
    if call.reset is not None:
        new = torch.where(call.reset[:, None], x, new)
    _slots.write(h, at.written, new)
    return _slots.silence(new.to(call.x.dtype), at.read), h


VARIANT = Variant(
    op="linear_scan_step",
    name="eager.addcmul",
    summary="one multiply-add",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
)
