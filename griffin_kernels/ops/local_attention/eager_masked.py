"""scaled_dot_product_attention with a T x S mask: what a user writes who has no windowed kernel.

With a softcap, or where the backward pass wants lse, the scores are written out: PyTorch's kernels take and
give neither. Work and memory grow with T * S, whatever the window.
"""

from __future__ import annotations

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention import _isolated, _masked


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """T x S scores have to fit where they are written out; else only the mask."""
    explicit = "softcap" in case.flags or "lse" in case.data
    return _masked.out_of_memory(case, device, score_tensors=3 if explicit else 0)


VARIANT = Variant(
    op="local_attention",
    name="eager.masked",
    summary="scaled_dot_product_attention with a T x S mask",
    run=_isolated.forward(lambda call, config: _masked.attention(call)),
    reject=reject,
    baseline=True,
)
