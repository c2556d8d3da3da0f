"""torch.nn.attention.flex_attention, compiled: PyTorch's own kernel for masks given as code.

Skips blocks of 128 x 128 scores that no query sees. Source: torch.nn.attention.flex_attention; see _flex.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention import _flex, _isolated
from griffin_kernels.ops.local_attention.op import Call


def finish(results: tuple[Tensor, Tensor | None], call: Call) -> tuple[Tensor | None, ...]:
    """Time before heads."""
    out, lse = results
    return out.transpose(1, 2), lse


ADAPTER = Adapter(_flex.prepare, torch.no_grad()(_flex.call), finish)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """On a CPU it gives no lse."""
    if device.kind == "cpu" and "lse" in case.data:
        return "flex_attention on a CPU does not return the log-sum-exp, which the backward pass needs"
    return _flex.problem(case, device)


VARIANT = Variant(
    op="local_attention",
    name="compiled.flex_attention",
    summary="torch.nn.attention.flex_attention, compiled",
    run=_isolated.forward(lambda call, config: ADAPTER(call)),
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
)
