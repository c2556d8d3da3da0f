"""Autograd through compiled flex_attention; see local_attention/_flex.py. GPUs only. The forward pass is not timed."""

from __future__ import annotations

import torch
import torch._functorch.config as functorch
from torch import Tensor

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _autograd
from griffin_kernels.ops.local_attention import _flex, _isolated


def prepare(inputs: Inputs) -> Inputs:
    """The graph of the forward pass."""
    leaves = [inputs[name].detach().requires_grad_() for name in ("q", "k", "v")]
    given = dict(zip(("q", "k", "v"), leaves, strict=True))
    # a graph that is gone back several times must not give its buffers away in the first pass
    with torch.enable_grad(), functorch.patch(donated_buffer=False):
        out, _ = _flex.call(**_flex.prepare(inputs | given | {"with_lse": False}))
    return _autograd.recorded([(out, inputs["dout"].transpose(1, 2))], leaves)


ADAPTER = Adapter(prepare, _autograd.gradients, lambda gradients, inputs: gradients)


@_isolated.backward
def run(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    *,
    config: NoConfig,
) -> tuple[Tensor | None, ...]:
    given = {"dout": dout, "q": q, "k": k, "v": v, "segment_pos": segment_pos, "cu_seqlens": cu_seqlens}
    return ADAPTER(given | {"window": window, "softcap": softcap, "scale": scale})


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """A CPU has the forward pass only."""
    if device.kind == "cpu":
        return "flex_attention has no backward pass on a CPU"
    return _flex.problem(case, device)


VARIANT = Variant(
    op="local_attention_bwd",
    name="compiled.flex_attention",
    summary="autograd through compiled flex_attention, without its forward pass",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
)
