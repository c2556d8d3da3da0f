"""One token of the recurrence as written in PyTorch: a product, a sum, the state overwritten.

What a user writes who keeps the state in a buffer. Runs on every device and dtype; launches bind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _slots
from griffin_kernels.ops.linear_scan_step.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    x, h, at = call.x, call.h, _slots.of(call, call.h.shape[0])
    a = call.a.to(h.dtype)
    a = torch.exp(a) if call.log_a else a
    new = a * _slots.rows(h, at.read) + x
    if call.reset is not None:
        new = torch.where(call.reset[:, None], x, new)
    _slots.write(h, at.written, new)
    return _slots.silence(new.to(x.dtype), at.read), h


VARIANT = Variant(
    op="linear_scan_step",
    name="eager.unfused",
    summary="a product and a sum",
    run=run,
    config=NoConfig,
    baseline=True,
)
