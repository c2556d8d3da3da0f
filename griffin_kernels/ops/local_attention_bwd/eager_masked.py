"""Autograd through attention with a T x S mask: what a user trains with. The forward pass is not timed."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _autograd
from griffin_kernels.ops.local_attention import _isolated, _masked

OPTIONS = ("segment_pos", "cu_seqlens", "window", "softcap", "scale")


def prepare(inputs: Inputs) -> Inputs:
    """The graph of the forward pass."""
    leaves = [inputs[name].detach().requires_grad_() for name in ("q", "k", "v")]
    given: Inputs = dict(zip(("q", "k", "v"), leaves, strict=True)) | {name: inputs[name] for name in OPTIONS}
    with torch.enable_grad():
        out, _ = _masked.attention(**given, with_lse=False)
    return _autograd.recorded([(out, inputs["dout"])], leaves)


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
    """T x S scores have to fit where they are written out; else only the mask."""
    return _masked.out_of_memory(case, device, score_tensors=5 if "softcap" in case.flags else 0)


VARIANT = Variant(
    op="local_attention_bwd",
    name="eager.masked",
    summary="autograd through scaled_dot_product_attention with a T x S mask, without its forward pass",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
)
