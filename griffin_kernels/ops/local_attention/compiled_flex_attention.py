"""torch.nn.attention.flex_attention, compiled: PyTorch's own kernel for masks given as code.

Skips blocks of 128 x 128 scores that no query sees. Source: torch.nn.attention.flex_attention; see _flex.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention import _flex, _isolated


def call(**arguments: Any) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        return _flex.call(**arguments)


def finish(results: tuple[Tensor, Tensor | None], inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Time before heads."""
    out, lse = results
    return out.transpose(1, 2), lse


ADAPTER = Adapter(_flex.prepare, call, finish)


@_isolated.forward
def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    with_lse: bool,
    *,
    config: NoConfig,
) -> tuple[Tensor | None, ...]:
    given = {"q": q, "k": k, "v": v, "segment_pos": segment_pos, "cu_seqlens": cu_seqlens, "window": window}
    return ADAPTER(given | {"softcap": softcap, "scale": scale, "with_lse": with_lse})


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """On a CPU it gives no lse."""
    if device.kind == "cpu" and "lse" in case.data:
        return "flex_attention on a CPU does not return the log-sum-exp, which the backward pass needs"
    return _flex.problem(case, device)


VARIANT = Variant(
    op="local_attention",
    name="compiled.flex_attention",
    summary="torch.nn.attention.flex_attention, compiled",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
)
